"""Which tokens of a prompt a simulated GPU still has in its KV cache. Pure: no time passes here.

As vLLM does it: prompts are cut into blocks of 16 tokens, a block is known by its own tokens and by all before it, and
only whole blocks are kept. The last token of a prompt is always computed, for the first of the answer follows from it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import orjson

from semcache.simulate.answers import Choice, Json, text_of, tokens_of

BLOCK_TOKENS = 16

Block = int  # the hash of a block's tokens, and of the block before it


class KvCache:
    """The blocks of one GPU: those used least recently give way to new ones."""

    def __init__(self, room_tokens: int) -> None:
        self.room = room_tokens // BLOCK_TOKENS
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._blocks: OrderedDict[Block, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def usage(self) -> float:
        """The share of the blocks that hold something."""
        return len(self._blocks) / self.room if self.room else 0.0

    def find(self, salt: int, tokens: Sequence[str]) -> int:
        """How many of the first tokens are here, and counts the question. `salt`: what else must be equal."""
        found = 0
        for block in _blocks(salt, tokens[:-1]):
            if block not in self._blocks:
                break
            found += BLOCK_TOKENS
        self.queried_tokens += len(tokens)
        self.hit_tokens += found
        return found

    def keep(self, salt: int, tokens: Sequence[str]) -> None:
        # The last block first, so that of one prompt its end is forgotten before its beginning: without the beginning
        # the rest could not be found.
        for block in reversed(list(_blocks(salt, tokens))):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self.room:
            self._blocks.popitem(last=False)


def salt_of(body: Json) -> int:
    """What stands before all turns of a chat request, or changes how they are read."""
    rest = [body.get("model"), body.get("tools")]
    return hash(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS))


def tokens_of_prompt(body: Json) -> list[str]:
    """A chat request as the model reads it: as many tokens as `answers.count_prompt` counts."""
    return [token for message in body.get("messages") or [] for token in _tokens_of_message(message)]


def tokens_of_turn(choice: Choice) -> list[str]:
    """An answer as the prompt of the next turn will hold it."""
    return _tokens_of_message({"role": "assistant", "content": choice.text})


def _tokens_of_message(message: Mapping[str, object]) -> list[str]:
    return ["<|", str(message.get("role")), "|>", *tokens_of(text_of(message.get("content"))), "<|end|>"]


def _blocks(salt: int, tokens: Sequence[str]) -> Iterator[Block]:
    before = salt
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = hash((before, *tokens[start : start + BLOCK_TOKENS]))
        yield before
