"""A question in one language never answers one in another. Each pair with its reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_language import language_differ, read_language

DIFFERENT = [
    ("Wie kann ich mein Passwort zurücksetzen?", "How can I reset my password?", "German"),
    ("wie setze ich mein passwort zurueck", "how do i reset my password", "German without its own letters"),
    ("Posso receber um reembolso?", "Can I get a refund?", "words of two other languages, none English"),
    ("Was ist Python?", "What is Python?", "nearly the same letters"),
    ("Qu'est-ce que Python ?", "What is Python?", "French"),
    ("Comment puis-je changer mon mot de passe ?", "How can I change my password?", "French"),
    ("¿Cómo cambio mi contraseña?", "How do I change my password?", "Spanish"),
    ("como cambio mi clave de la cuenta", "how do i change the key of my account", "Spanish without accents"),
    ("Como posso mudar a minha senha?", "How can I change my password?", "Portuguese"),
    ("¿Cómo puedo cambiar mi dirección?", "Como posso mudar o meu endereço?", "Spanish and Portuguese"),
    ("Come posso cambiare la mia password?", "How can I change my password?", "Italian"),
    ("Hoe kan ik mijn wachtwoord wijzigen?", "How can I change my password?", "Dutch"),
    ("Hoe kan ik mijn wachtwoord wijzigen?", "Wie kann ich mein Passwort ändern?", "Dutch and German"),
    ("Jak mogę zmienić hasło?", "How can I change my password?", "Polish"),
    ("Şifremi nasıl değiştirebilirim?", "How can I change my password?", "Turkish"),
    ("Làm thế nào để đổi mật khẩu?", "How do I change my password?", "Vietnamese"),
    ("Bagaimana cara mengubah kata sandi saya?", "How do I change my password?", "Indonesian"),
    ("Как изменить пароль?", "How do I change my password?", "Cyrillic"),
    ("Як змінити пароль?", "Как изменить пароль?", "Ukrainian and Russian"),
    ("如何更改密码?", "How do I change my password?", "Chinese"),
    ("パスワードを変更するには?", "如何更改我的密码?", "Japanese and Chinese"),
    ("비밀번호를 어떻게 바꾸나요?", "How do I change my password?", "Korean"),
    ("كيف أغير كلمة المرور؟", "How do I change my password?", "Arabic"),
    ("मैं अपना पासवर्ड कैसे बदलूं?", "How do I change my password?", "Hindi"),
    ("আমি কিভাবে পাসওয়ার্ড পরিবর্তন করব?", "How do I change my password?", "Bengali"),
    ("எனது கடவுச்சொல்லை எப்படி மாற்றுவது?", "How do I change my password?", "Tamil"),
    ("รีเซ็ตรหัสผ่านอย่างไร", "how do I reset my password", "Thai"),
    ("Πώς αλλάζω τον κωδικό μου;", "How do I change my password?", "Greek"),
    ("איך אני משנה סיסמה?", "How do I change my password?", "Hebrew"),
    ("میں اپنا پاس ورڈ کیسے تبدیل کروں؟ کیا یہ ہے", "كيف أغير كلمة المرور؟ هل هذا", "Urdu and Arabic share letters"),
    ("Größe ändern", "how do I change the size", "a letter that English lacks, and no English word"),
    ("Translate good morning into French", "Translate good morning into German", "the language wanted"),
    ("translate hello to spanish", "translate hello to portuguese", "the language wanted, in lower case"),
    ("what is the word for kettle in japanese", "what is the word for kettle in korean", "the language wanted"),
    ("Answer in English: what is a monad?", "Answer in French: what is a monad?", "the language of the answer"),
    ("write a poem in hindi", "write a poem in urdu", "the language of a text"),
    ("say cheers in Irish", "say cheers in Welsh", "small languages"),
    ("Auf Deutsch: what is a monad?", "Auf Englisch: what is a monad?", "wanted in another language's words"),
    ("translate this", "translate this into French", "wanted on one side only"),
    ("summarise the text in spanish", "summarise the text", "wanted on one side only"),
    ("Vad är Python och hur lär jag mig det?", "What is Python and how do I learn it?", "Swedish"),
    ("Ce este Python și cum pot să învăț?", "What is Python and how can I learn it?", "Romanian"),
]

EQUAL = [
    ("How can I reset my password?", "how do I reset the password", "both English"),
    ("Wie kann ich mein Passwort ändern?", "Wie ändere ich das Passwort?", "both German"),
    ("wie kann ich mein passwort aendern", "Wie kann ich mein Passwort ändern?", "German with and without umlauts"),
    ("¿Cómo cambio mi clave?", "como cambio mi clave", "Spanish with and without its marks"),
    ("Come cambio la password?", "come si cambia la mia password", "both Italian"),
    ("reset password", "password reset", "too short to tell, and nothing foreign"),
    ("reset password", "how do I reset my password", "one too short to tell"),
    ("cafe near me", "café near me", "a loan word"),
    ("what is a résumé", "what is a resume", "a loan word"),
    ("best hotels in São Paulo", "best hotels in sao paulo", "a foreign name"),
    ("who was Gödel", "who was Godel", "a foreign name"),
    (
        'What does "wie geht es dir" mean?',
        "what is the meaning of wie geht es dir",
        "what is quoted is not the asker's",
    ),
    ("What does привет mean?", "what does the word привет mean", "a foreign word"),
    ("translate hello into French", "Translate Hello to french, please", "into and to"),
    ("how do you say hello in farsi", "how do you say hello in persian", "two names of one language"),
    ("say it in mandarin", "say it in chinese", "two names of one language"),
    ("write it in python", "write it in java", "programming languages are for another guard"),
    ("French wine prices", "prices of wines from France", "an adjective is no language wanted"),
    ("12345", "How are you?", "no letters at all"),
    ("", "How are you?", "no text at all"),
    ("👍", "yes", "pictures have no language"),
    ("ok", "okay", "one word"),
    ("Beyoncé songs", "what are the songs of Beyoncé", "a foreign name and no small word"),
    ("São Paulo hotels", "what are the best hotels in São Paulo", "a foreign name and no small word"),
    ("東京の天気", "東京の天気は?", "both Japanese"),
    ("天气预报", "天气预报怎么样", "both Chinese"),
    ("비밀번호 변경", "비밀번호를 변경해 주세요", "both Korean"),
    ("Как изменить пароль?", "как мне поменять пароль", "both Russian"),
    ("कैसे बदलें पासवर्ड", "पासवर्ड कैसे बदलें", "both Hindi"),
    ("iPhone 15 Pro Max", "iphone 15 pro max price", "names only"),
    ("open an account", "I want to open an account", "English with and without small words"),
    ("HOW DO I PAY", "how do i pay", "capitals"),
    ("cancel order", "please cancel my order", "one too short to tell"),
    ("what is the difference between la and le", "difference between le and la", "words of another language, named"),
    ("what does on dit mean", "what is on dit", "words of another language, named"),
    ("me gusta", "me gustas", "two words"),
    ("Was ist das?", "was ist das", "German, case"),
    ("de facto vs de jure", "what is the difference between de facto and de jure", "Latin in English"),
    ("is a date fruit healthy", "are dates healthy", "words that other languages have too"),
    ("how are you", "how are u", "slang"),
    ("ｈｏｗ ａｒｅ ｙｏｕ", "how are you", "full-width letters"),
    ("Où est ma commande ?", "ou est ma commande", "French with and without accents"),
    ("hasta cuándo dura la oferta", "hasta cuando dura la oferta", "Spanish with and without accents"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_another_language_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert language_differ(asked, stored), why
    assert language_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), EQUAL)
def test_the_same_language_or_none_is_no_difference(asked: str, stored: str, why: str) -> None:
    assert not language_differ(asked, stored), why
    assert not language_differ(stored, asked), f"{why}, the other way round"


TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from("how wie ich my das the in French 'le' ¿qué to как привет \" 何 mit".split()), max_size=8
    ).map(" ".join),
)


@given(TEXTS, TEXTS)
def test_the_order_of_the_two_texts_never_matters(asked: str, stored: str) -> None:
    assert language_differ(asked, stored) == language_differ(stored, asked)


@given(TEXTS)
def test_a_text_never_differs_from_itself_whatever_its_white_space(text: str) -> None:
    assert not language_differ(text, text)
    assert not language_differ(text, "  ".join(text.split(" ")) + " ")


@given(st.text("abcdefghij ABCXYZäÖßñ.,'\"-0123?", max_size=60))
def test_case_never_matters(text: str) -> None:
    assert not language_differ(text, text.upper())
    assert not language_differ(text.lower(), text)


def test_a_lone_quotation_mark_does_not_hide_the_language() -> None:
    assert read_language('How do I fit a 15" screen to my desk, and what would it cost me?').language == "en"
