"""What sizes a configuration of somebody else's model may give: types that msgspec checks when it is read."""

from typing import Annotated

from msgspec import Meta

Size = Annotated[int, Meta(ge=1, le=2**24)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Token = Annotated[int, Meta(ge=0, lt=2**24)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]
Word = Annotated[str, Meta(max_length=100)]
