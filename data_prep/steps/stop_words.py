"""The words that coherent text of a language is never without, by ISO 639-1 code.

English is Gopher's own list. The others are common words of the same kinds: articles, conjunctions,
prepositions, forms of to be and to have. Chinese and Japanese words are single characters, as they are split.
"""

from __future__ import annotations

_LISTS = {
    "en": "the be to of and that have with",
    "bg": "на и да се за от не са е с",
    "ca": "el la de i que a els per en amb no és",
    "cs": "a se na v je že to s z do pro není",
    "da": "og i at det en til er som på de med af for",
    "de": "der die das und in zu den mit von ist nicht ein eine auf für sich",
    "el": "και το να του η της με που για ο την από",
    "es": "de la que el en y a los se del las por un una con para no es",
    "fi": "ja on ei se että en hän oli ole myös voi tai kun jos",
    "fr": "de la le et les des en un du une que est pour qui dans à ne pas",
    "hu": "a az és hogy nem is egy ez van meg ha vagy",
    "id": "yang dan di untuk dengan dari ini itu tidak akan pada adalah ke dalam",
    "it": "di e il la che a per un in è una non i con del le della si",
    "ja": "の に は を た が で て と し れ さ",
    "ko": "이 그 및 수 것 는 은 를 을 에 있는 있다 한 할 또는",
    "nl": "de en van het een in is dat te op zijn met voor niet",
    "no": "og i det er på en som til av for at med å ikke",
    "pl": "i w na z do się nie że jest to o jak lub dla",
    "pt": "de a o que e do da em um para com não uma os no se na por",
    "ro": "de și în la cu a nu pe să o din că este un care",
    "ru": "и в не на что с как по это из для или к если",
    "sv": "och i att det en som på är av för med till den inte",
    "tr": "ve bir bu için ile da de olarak daha gibi ne veya olan",
    "uk": "і в на не що з до та у для це як або за",
    "vi": "và là của có cho không một các được trong với này để",
    "zh": "的 是 不 在 了 和 有 一 中 为 個 这 與 为",
}
STOP_WORDS = {language: frozenset(words.split()) for language, words in _LISTS.items()}


def stop_words_of(language: str) -> frozenset[str] | None:
    """The list of a language (`pt`, `pt_BR` and `pt-BR` are one), None when there is none."""
    return STOP_WORDS.get(language.replace("_", "-").partition("-")[0].lower())
