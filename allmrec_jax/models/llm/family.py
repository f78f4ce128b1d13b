"""What a language model is to the rest of the package, and the record that a family of them (an architecture) gives.

Everything that reads, places, adapts, plans or asks a language model does so through these; nothing outside of a
family's own module names the family.

Shapes: B batch, T new tokens, S attended columns, L layers, E word width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol, Self

from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from allmrec_jax.models.llm.gguf_form import GGUFForm
from allmrec_jax.sharding import MeshShape, Rules


class LMConfig(Protocol):
    """A configuration: a frozen dataclass of the fields of a Hugging Face ``config.json`` that decide the computation.

    msgspec converts a file's object to it, so that the fields' types say what a file may hold
    (:mod:`allmrec_jax.models.limits`).

    Attributes:
        model_type: as in ``config.json``; what the family is found by.
        vocab_size: V, rows of the word table.
        hidden_size: width of the layers.
        embed_dim: E, width of the word embeddings.
        intermediate_size: units of a layer's feed-forward part.
        num_hidden_layers: L.
        num_attention_heads: query heads.
        num_key_value_heads: heads of keys and values.
        head_dim: width of a head.
        max_position_embeddings: tokens that can be read at most.
        pad_token_id, bos_token_id, eos_token_id: special tokens.
    """

    def __hash__(self) -> int: ...
    @property
    def model_type(self) -> str: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def embed_dim(self) -> int: ...  # noqa: D102
    @property
    def intermediate_size(self) -> int: ...  # noqa: D102
    @property
    def num_hidden_layers(self) -> int: ...  # noqa: D102
    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def num_key_value_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102
    @property
    def max_position_embeddings(self) -> int: ...  # noqa: D102
    @property
    def pad_token_id(self) -> int: ...  # noqa: D102
    @property
    def bos_token_id(self) -> int: ...  # noqa: D102
    @property
    def eos_token_id(self) -> int: ...  # noqa: D102

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the object of a ``config.json`` without its nulls; keys that decide nothing are left aside.

        Raises:
            ValueError: values that do not go together; the message names their keys.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """The object of a ``config.json`` that transformers reads."""
        ...


class LanguageModel(Protocol):
    """A causal language model as a Flax Linen module, its layers stacked under a scan.

    Its parameters are a tree in which ``layers`` holds every layer's, stacked on axis 0; a matrix is a ``kernel``
    [L, inputs, outputs], perhaps in int8 (:mod:`allmrec_jax.models.llm.int8`). A collection ``lora`` beside ``params``
    adds low-rank terms (:mod:`allmrec_jax.models.llm.lora`). The methods are called through :meth:`apply`.

    Attributes:
        config: of the model.
        dtype: of the computation; parameters keep the type that they were loaded in.
        remat: recompute each layer in the backward pass instead of keeping its activations.
        lora_dropout: of the low-rank terms' inputs, where a ``dropout`` key is given.
    """

    config: Any
    dtype: Any
    remat: bool
    lora_dropout: float

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Word embeddings as the layers read them (scaled, where a family scales them), without positions: the space
        that soft tokens share."""
        ...

    def __call__(
        self,
        embeds: Float[Array, "B T E"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | None = None,
        cache: Any = None,
        start: int | Int[Array, ""] = 0,
        layers: list[Any] | None = None,
    ) -> tuple[Float[Array, "B T E"], Any]:
        """Hidden states ready for :meth:`logits`, and the cache with the new columns.

        Args:
            embeds: word embeddings, soft tokens among them.
            positions: 0-based positions; below ``max_position_embeddings``.
            mask: True where a token (row) may attend a column; a row holds a token and those before it. ``None`` is
                causal over the T tokens themselves, under which padding on the right needs no mask; columns written
                before are then not read.
            cache: of :func:`allmrec_jax.models.llm.attention.init_cache`; the T new columns go to
                ``start … start + T``.
            start: see ``cache``.
            layers: unstacked weights to use in place of those that were given stacked
                (:func:`allmrec_jax.models.llm.stack.unstacked`); ``cache`` is then unstacked too.
        """
        ...

    def logits(self, hidden: Float[Array, "*N E"]) -> Float[Array, "*N V"]:
        """Next-token logits, float32."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Flax's: calls the module, or the ``method`` that is named, with these variables."""
        ...

    def clone(self, **updates: Any) -> Self:
        """Flax's: the module with other attributes."""
        ...


class Leaf(NamedTuple):
    """One parameter of the Flax module and where it stands in a checkpoint.

    Attributes:
        path: in the tree of parameters.
        key: in the checkpoint, without prefix, with ``{layer}`` where the parameter is stacked over layers.
        shape: in the checkpoint, of one layer.
        transposed: PyTorch's Linear holds [out, in], Flax's Dense [in, out].
    """

    path: tuple[str, ...]
    key: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def in_layers(self) -> bool:
        """Whether the parameter is stacked over layers."""
        return self.path[0] == "layers"

    @property
    def is_kernel(self) -> bool:
        """Whether it is a matrix of the layers: what int8 stores, and nearly all that is computed with."""
        return self.in_layers and self.path[-1] == "kernel"

    def keys(self, config: LMConfig) -> Iterator[tuple[int | None, str]]:
        """The checkpoint's keys of the parameter, without prefix, and the layer of each."""
        if not self.in_layers:
            yield None, self.key
            return
        for layer in range(config.num_hidden_layers):
            yield layer, self.key.format(layer=layer)

    def stacked_shape(self, config: LMConfig) -> tuple[int, ...]:
        """The shape of the Flax parameter, layers stacked."""
        shape = self.shape[::-1] if self.transposed else self.shape
        return (config.num_hidden_layers, *shape) if self.in_layers else shape


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture: all that the package has to know to use a language model of it.

    Attributes:
        title: in messages and tables, e.g. ``"OPT"``.
        model_types: the values of ``model_type`` in ``config.json`` that are of this family.
        config: the class of its configurations, an :class:`LMConfig`.
        module: the class of its modules, a :class:`LanguageModel` made of a configuration.
        layout: every parameter of a model of a configuration, and where it stands in a checkpoint; ``head`` among them
            where the output layer is no copy of the word table.
        prefixes: before the keys of a checkpoint, but the head's; the first one is written.
        rules: where the parameters lie on a mesh.
        variants: what every ``config.json`` of the family has to say where it says anything, because the module
            computes only that.
        key_values: the projections to keys and values.
        adapts: the projections that LoRA may adapt.
        tallrec: those that TALLRec adapts, which are the queries' and the values'.
        published: configurations by their names on the hub, for ``allmrec plan``.
        bos: where a prompt has the beginning-of-text token: ``first``, where the tokenizer puts it first by itself, or
            behind the user's vector, as the authors of A-LLMRec have it with OPT.
        words: the checkpoint's key of the word table.
        head: the checkpoint's key of the output layer.
        buffers: a pattern of plain keys that files of old versions hold beside the weights, and that are left aside.
        gguf: how its models stand in a GGUF file, if they do.
        kept_units: numbers that a unit of the feed-forward part keeps for the backward pass, for ``allmrec plan``: 1
            for a ReLU, 4.5 for a gated unit (its gate, that activated, the other factor, the product, and what XLA
            keeps of the norms in float32; fitted to compiled programs).
    """

    title: str
    model_types: tuple[str, ...]
    config: type[Any]
    module: Callable[..., Any]
    layout: Callable[[Any], list[Leaf]]
    prefixes: tuple[str, ...]
    rules: Rules
    variants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key_values: tuple[str, ...] = ("k_proj", "v_proj")
    adapts: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    tallrec: tuple[str, ...] = ("q_proj", "v_proj")
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bos: Literal["first", "behind user"] = "first"
    words: str = "embed_tokens.weight"
    head: str = "lm_head.weight"
    buffers: str = r"(?!)"
    gguf: GGUFForm | None = None
    kept_units: float = 1.0

    def plain(self, key: str) -> str:
        """A checkpoint's key without its prefix."""
        return next((key.removeprefix(prefix) for prefix in self.prefixes if key.startswith(prefix)), key)

    def written(self, key: str) -> str:
        """The checkpoint's key of a plain one."""
        return key if key == self.head else self.prefixes[0] + key

    def rules_on(self, config: LMConfig, mesh: MeshShape) -> Rules:
        """The rules for such a mesh: key-value heads that ``tensor`` does not divide are whole on each device."""
        if config.num_key_value_heads % mesh.tensor == 0:
            return self.rules
        whole = rf"layers/({'|'.join(self.key_values)})/\w+"
        replicated = [(rf"(?={whole}\Z)({pattern})", without_tensor(spec)) for pattern, spec in self.rules]
        return (*replicated, *((rf"(?!{whole}\Z)({pattern})", spec) for pattern, spec in self.rules))

    def projections(self, config: LMConfig) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the projections that LoRA may adapt, by name."""
        shapes = {leaf.path[1]: leaf.shape[::-1] for leaf in self.layout(config) if leaf.is_kernel}
        return {name: (shapes[name][0], shapes[name][1]) for name in self.adapts}


def without_tensor(spec: P) -> P:
    """The spec of an array that no device holds a part of for the sake of ``tensor``."""
    return P(*(None if axis == "tensor" else axis for axis in spec))
