"""Foreign text in Markdown."""

import pytest

from allmrec_jax.markdown import escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Alien (1979)", "Alien (1979)"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b_c*d`e", r"a\|b\_c\*d\`e"),
        ("[x](javascript:1) &lt;", r"\[x\](javascript:1) &amp;lt;"),
        ("two\nlines\x1b[0m", r"two\\nlines\\x1b\[0m"),
    ],
)
def test_markup_in_data_is_shown_not_obeyed(text: str, shown: str):
    assert escaped(text) == shown
