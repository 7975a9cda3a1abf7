"""Languages, for the report."""

import pytest

from ochat_ray.data.language import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the best way to learn a language at home?", "en"),
        ("Wie lernt man am besten eine Sprache zu Hause?", "de"),
        ("¿Cuál es la mejor manera de aprender un idioma en casa?", "es"),
        ("我想学习一门新的语言，应该怎么开始？", "zh"),
        ("1 + 1 = ?", ""),
        ("", ""),
    ],
)
def test_language_of(text, language):
    assert language_of(text) == language
