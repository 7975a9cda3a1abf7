"""Report texts for drop reasons and language codes."""

from __future__ import annotations

from ochat_ray.schema import Reason

EXPLANATIONS: dict[str, str] = {
    Reason.UNREADABLE: "empty, damaged, or of another kind than its name indicates",
    Reason.TORN: "the file ends in the middle of it, or is damaged",
    Reason.TOO_LARGE: "beyond the bounds of a page or a conversation",
    Reason.NO_DATA: "a page or file without a conversation in it",
    Reason.MALFORMED: "not a list of turns with a known role and a text",
    Reason.UNSUPPORTED: "it needs what no template here writes",
    Reason.OTHER_MODEL: "another model than the one to keep",
    Reason.TOO_SHORT: "no question with an answer",
    Reason.EMPTY_TURN: "a turn that shows nothing",
    Reason.WRONG_ROLE_ORDER: "user and assistant do not alternate",
    Reason.PROVIDER_ERROR: "an answer before the last, or the only one, is a provider's error",
    Reason.BLOCKED_WORD: "a reader sees a blocked word",
    Reason.CONVERSION_FAILED: "HTML nested too deeply",
    Reason.LOW_FIDELITY: "the Markdown preserves too little of the HTML",
    Reason.CONTAMINATED: "it contains an evaluation question",
    Reason.DUPLICATE: "the same roles and texts as one that is kept",
    Reason.NEAR_DUPLICATE: "nearly the same words as one that is kept",
    Reason.NO_LOSS_WEIGHT: "no answer has a loss weight above 0",
    Reason.TOO_LONG: "longer than the context, and --long drop",
    Reason.NO_SUPERVISED_TOKENS: "no answer begins within the context length",
    Reason.TEMPLATE_REFUSED: "the model's own chat template refuses the conversation, or writes no "
    "answer after its own prompt",
}

_CODES = """
af Afrikaans, am Amharic, ar Arabic, az Azerbaijani, be Belarusian, bg Bulgarian, bn Bengali,
bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek, en English,
eo Esperanto, es Spanish, et Estonian, eu Basque, fa Persian, fi Finnish, fr French, ga Irish,
gl Galician, gu Gujarati, he Hebrew, hi Hindi, hr Croatian, hu Hungarian, hy Armenian,
id Indonesian, is Icelandic, it Italian, ja Japanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada,
ko Korean, la Latin, lo Lao, lt Lithuanian, lv Latvian, mk Macedonian, ml Malayalam, mn Mongolian,
mr Marathi, ms Malay, mt Maltese, my Burmese, nb Norwegian, ne Nepali, nl Dutch, nn Norwegian,
no Norwegian, pa Punjabi, pl Polish, ps Pashto, pt Portuguese, ro Romanian, ru Russian, si Sinhala,
sk Slovak, sl Slovenian, sq Albanian, sr Serbian, sv Swedish, sw Swahili, ta Tamil, te Telugu,
th Thai, tl Tagalog, tr Turkish, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, yue Cantonese,
zh Chinese
"""
LANGUAGES: dict[str, str] = dict(pair.split() for pair in _CODES.replace("\n", " ").split(","))
"""Names of frequent languages; others are shown by code."""
