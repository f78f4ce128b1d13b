"""What people read of a title or description, and what they do not."""

import pytest

from allmrec_jax.data.cleaning import clean_text


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("<b>Red</b>\n  Kettle &amp; Lid", "Red Kettle & Lid"),
        ('<span id="productTitle">\n Red Kettle </span>', "Red Kettle"),
        ("<script type='x'>var x = '<b>';</script>Good <STYLE>.a{color:red}</style> one", "Good one"),
        ("Good <script>never closed", "Good"),
        ("Good &amp;amp; cheap &lt;b&gt;bold&lt;/b&gt;", "Good & cheap bold"),
        ("&lt;script&gt;alert(1)&lt;/script&gt;Lamp", "Lamp"),
        ("a <!-- remark --> b", "a b"),
        ("var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();", ""),
        (".a{color:red}", ""),
        ("(function(){f();})()", ""),
        ("a < b && c <3", "a < b && c <3"),
        ("a &lt; b", "a < b"),
        ("Function: the Musical", "Function: the Musical"),
        ("Var = Variance", "Var = Variance"),
        ("Scripted <3", "Scripted <3"),
    ],
)
def test_clean_text(raw, cleaned):
    assert clean_text(raw) == cleaned
