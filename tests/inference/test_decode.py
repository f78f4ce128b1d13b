import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llm

from allmrec_jax.inference.decode import PRESETS, DecodeSettings, decode_texts, generate, prefill
from allmrec_jax.models.llm.opt import OPT

LENGTHS = np.array([9, 4, 12, 1])


def embeddings(width=16):
    """Soft prompts: vectors that are no token's; the padding is not zero, so that reading it would show."""
    return np.random.default_rng(1).standard_normal((len(LENGTHS), 12, width)).astype(np.float32)


@jax.jit(static_argnums=0)
def next_logits(llm, params, ids, embeds, length):
    """Logits after the first ``length`` of a row's embeddings and tokens, everything computed anew."""
    variables = {"params": params}
    words = llm.apply(variables, ids[None], method="embed")
    hidden, _ = llm.apply(variables, jnp.where(ids[None, :, None] < 0, embeds[None], words), jnp.arange(len(ids))[None])
    return llm.apply(variables, hidden[0, length - 1], method="logits")


def naive(llm, params, embeds, length, settings):
    """One row, the whole sequence read again for every token: no cache, no padding before it, no batch."""
    cfg = llm.config
    width = min(len(embeds) + settings.max_new_tokens, cfg.max_position_embeddings)
    ids, soft = np.full(width, cfg.pad_token_id), np.zeros((width, embeds.shape[1]), np.float32)
    ids[:length], soft[:length] = -1, embeds[:length]
    tokens = []
    seen = {cfg.eos_token_id} if settings.penalize_end else set()
    while len(tokens) < settings.max_new_tokens:
        logits = np.array(next_logits(llm, params, ids, soft, length + len(tokens)))
        for token in seen:
            logits[token] *= settings.repetition_penalty if logits[token] < 0 else 1 / settings.repetition_penalty
        tokens.append(int(np.argmax(logits)))
        seen.add(tokens[-1])
        if tokens[-1] == cfg.eos_token_id or length + len(tokens) > width:
            break
        ids[length + len(tokens) - 1 : length + len(tokens)] = tokens[-1]
    return tokens + [cfg.pad_token_id] * (settings.max_new_tokens - len(tokens))


@jax.jit(static_argnums=(0, 4))
def cached(llm, params, embeds, lengths, settings):
    return generate(llm, params, prefill(llm, params, embeds, lengths), settings)


@pytest.mark.parametrize(
    ("settings", "pre_norm"),
    [(DecodeSettings(12), True), (DecodeSettings(12, 1.5), True), (DecodeSettings(12, 1.5, True), False)],
)
def test_cached_decoding_equals_the_naive_loop(settings, pre_norm):
    width = {} if pre_norm else {"word_embed_proj_dim": 8, "do_layer_norm_before": False}
    llm, params = tiny_llm.model(**width)
    embeds = embeddings(llm.config.word_embed_proj_dim)
    found = np.asarray(cached(llm, params, embeds, LENGTHS, settings))
    for row, length in enumerate(LENGTHS):
        assert found[row].tolist() == naive(llm, params, embeds[row], length, settings)
    assert len({tuple(row) for row in found.tolist()}) == len(LENGTHS)


def ending_model():
    """A model in which </s> beats the token 296, which some of the prompts lead to and some don't."""
    llm, params = tiny_llm.model()
    table = np.array(params["embed_tokens"]["embedding"])
    table[2] = 1.1 * table[296]
    return llm, {**params, "embed_tokens": {"embedding": table}}


def test_rows_end_on_their_own_and_are_padded():
    llm, params = ending_model()
    found = np.asarray(cached(llm, params, embeddings(), LENGTHS, DecodeSettings(24)))
    for row, length in enumerate(LENGTHS):
        assert found[row].tolist() == naive(llm, params, embeddings()[row], length, DecodeSettings(24))
    ends = (found == 2).any(axis=1)
    assert ends.any() and not ends.all()


def test_the_loop_stops_when_all_rows_have_ended():
    calls = []

    class Counting(OPT):
        def embed(self, ids):
            jax.debug.callback(lambda: calls.append(1))
            return super().embed(ids)

    _, params = ending_model()
    llm = Counting(tiny_llm.config())
    ending = jnp.asarray(params["embed_tokens"]["embedding"][[2] * 4])  # hidden states whose next token is </s>
    prefix = prefill(llm, params, embeddings(), LENGTHS)
    found = np.asarray(generate(llm, params, prefix._replace(last=ending), DecodeSettings(5)))
    jax.effects_barrier()
    assert found.tolist() == [[2, 1, 1, 1, 1]] * 4 and len(calls) == 1
    generate(llm, params, prefix._replace(last=ending.at[0].set(prefix.last[0])), DecodeSettings(5))
    jax.effects_barrier()
    assert len(calls) == 1 + 5


def test_generation_ends_at_the_last_position():
    llm, params = tiny_llm.model(max_position_embeddings=14)
    found = np.asarray(cached(llm, params, embeddings(), LENGTHS, DecodeSettings(8)))
    for row, length in enumerate(LENGTHS):
        assert found[row].tolist() == naive(llm, params, embeddings()[row], length, DecodeSettings(8))
    assert (found[2, 3:] == 1).all() and (found[2, :3] != 1).all()


@pytest.fixture(scope="module")
def reference():
    """The same model in transformers."""
    torch = pytest.importorskip("torch")
    from transformers import OPTConfig, OPTForCausalLM

    llm, params = ending_model()
    theirs = OPTForCausalLM(OPTConfig(**{**llm.config.to_dict(), "dropout": 0.0, "attention_dropout": 0.0})).eval()
    state = {
        "model.decoder.embed_tokens.weight": params["embed_tokens"]["embedding"],
        "model.decoder.embed_positions.weight": params["embed_positions"]["embedding"],
        "model.decoder.final_layer_norm.weight": params["final_layer_norm"]["scale"],
        "model.decoder.final_layer_norm.bias": params["final_layer_norm"]["bias"],
    }
    for name, module in params["layers"].items():
        prefix = f"self_attn.{name}" if name in ("q_proj", "k_proj", "v_proj", "out_proj") else name
        for layer in range(llm.config.num_hidden_layers):
            for leaf, value in module.items():
                kind = "bias" if leaf == "bias" else "weight"
                one = np.asarray(value[layer])
                state[f"model.decoder.layers.{layer}.{prefix}.{kind}"] = one.T if leaf == "kernel" else one
    state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"]
    theirs.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    return llm, params, theirs


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_generation_equals_transformers(reference, penalty):
    """transformers 5 with ``inputs_embeds``: the penalty's history starts empty.

    Prompt by prompt: in a left-padded batch, transformers 5.23 leaves as many *generated* tokens out of the penalty as
    a row has padding (its ``prompt_ignore_length`` counts into a history that holds no prompt).
    """
    import torch

    llm, params, theirs = reference
    embeds = embeddings()
    found = np.asarray(cached(llm, params, embeds, LENGTHS, DecodeSettings(20, penalty)))
    for row, length in enumerate(LENGTHS):
        with torch.no_grad():
            expected = theirs.generate(
                inputs_embeds=torch.from_numpy(embeds[None, row, :length]),
                attention_mask=torch.ones(1, int(length), dtype=torch.long),
                max_new_tokens=20,
                do_sample=False,
                repetition_penalty=penalty,
                pad_token_id=1,
                eos_token_id=2,
            )
        expected = expected[0].tolist()
        assert found[row].tolist() == expected + [1] * (20 - len(expected))


def test_the_official_history_penalises_the_end_from_the_first_step(reference):
    """transformers 4.32.1 starts the penalty's history with ``</s>``: a positive logit of it is divided at once."""
    llm, params, _ = reference
    variables = {"params": params}
    last = jnp.asarray(params["embed_tokens"]["embedding"][[2] * 4])  # where </s> has by far the largest logit
    logits = np.asarray(llm.apply(variables, last, method="logits"))[0]
    runner_up = np.sort(logits)[-2]
    assert np.argmax(logits) == 2 and logits[2] / 100.0 < runner_up
    prefix = prefill(llm, params, embeddings(), LENGTHS)._replace(last=last)
    plain = np.asarray(generate(llm, params, prefix, DecodeSettings(1, 100.0)))
    seeded = np.asarray(generate(llm, params, prefix, DecodeSettings(1, 100.0, penalize_end=True)))
    assert (plain == 2).all() and (seeded == np.argsort(logits)[-2]).all()
    assert PRESETS["official"] == DecodeSettings(511, 1.5, True)


def test_texts_end_at_the_end_of_text():
    tokenizer = tiny_llm.tokenizer()
    ids = tokenizer('It Follows"').input_ids
    rows = np.full((2, len(ids) + 3), 1)
    rows[0, : len(ids) + 1], rows[1, : len(ids)] = [*ids, 2], ids
    rows[1, len(ids) :] = ids[0]
    assert decode_texts(tokenizer, rows) == ['It Follows"', 'It Follows"' + 3 * tokenizer.decode(ids[:1])]
