"""Real networks that are small enough for tests: one layer, random weights."""

from __future__ import annotations

from pathlib import Path

WINDOW = 128  # tokens; the longest probe has a hundred, as most of its letters are words of their own
WORDS = "how do i reset my password where is parcel the pay cancel order turn on off".split()


def small_cross_encoder(folder: Path) -> Path:
    """A cross-encoder as sentence-transformers keeps it; its vocabulary is some words and all letters."""
    return _write(folder, "BertForSequenceClassification")


def small_embedder(folder: Path) -> Path:
    return _write(folder, "BertModel")


def _write(folder: Path, kind: str) -> Path:
    import torch
    import transformers
    from transformers import BertConfig, BertTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = list(dict.fromkeys([*marks, *WORDS, *letters, *(f"##{each}" for each in letters)]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.set_num_threads(1)  # so small a network only waits for other threads, minutes where they wait for a core
    torch.manual_seed(7)
    shape = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=WINDOW,
        initializer_range=0.3,
        num_labels=1,
    )
    getattr(transformers, kind)(shape).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=WINDOW).save_pretrained(folder)
    return folder
