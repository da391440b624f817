"""Miniature models of every shape of attention that llama.cpp knows: random weights from a fixed seed.

They answer nonsense, but which nonsense depends on every key and value: what a cache does to one shows in the logits.
Names and shapes of tensors are those that llama.cpp asks for.
"""

import zlib

import numpy as np

from shapes import gguf_file

VOCABULARY = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]


class Model:
    """What becomes one file. A matrix holds rows of unit norm in the mean, so that activations neither grow nor fade."""

    def __init__(self, name, arch, *, layers=2, width=64, heads=4, kv_heads=2, k_dim=32, v_dim=None, inner=64,
                 **more_fields):
        v_dim = v_dim or k_dim
        self.name, self.arch, self.layers, self.width, self.inner = name, arch, layers, width, inner
        self.heads, self.kv_heads, self.k_dim, self.v_dim = heads, kv_heads, k_dim, v_dim
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.tensors = {}
        self.fields = {
            "general.architecture": arch,
            "general.name": name,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": VOCABULARY,
            "tokenizer.ggml.scores": [0.0] * len(VOCABULARY),
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": False,
        }
        own = {"context_length": 8192, "embedding_length": width, "block_count": layers, "feed_forward_length": inner,
               "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": k_dim,
               "attention.value_length": v_dim, "attention.layer_norm_rms_epsilon": 1e-5,
               "attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": k_dim, "rope.freq_base": 10000.0}
        for key, value in (own | {k.replace("__", "."): v for k, v in more_fields.items()}).items():
            self.fields[f"{arch}.{key}"] = value

    def matrix(self, name, n_in, *n_out, gain=1.0):
        shape = (*n_out[::-1], n_in)
        self.tensors[name] = self.random.standard_normal(shape, np.float32) * np.float32(gain / np.sqrt(n_in))

    def vector(self, name, n, mean=0.0, spread=0.1):
        self.tensors[name] = np.float32(mean) + self.random.standard_normal(n, np.float32) * np.float32(spread)

    def norm(self, name, n=None):
        self.vector(name + ".weight", n or self.width, mean=1.0)

    def outside(self, *, output=True):
        """Embedding, last norm and output; without `output` the embedding is both."""
        self.matrix("token_embd.weight", self.width, len(VOCABULARY), gain=np.sqrt(self.width) if output else 1)
        self.norm("output_norm")
        if output:
            self.matrix("output.weight", self.width, len(VOCABULARY))

    def attention(self, layer, *, kv_heads=None, norm=True):
        """Queries are twice as long as keys, so that attention looks at some tokens more than at others."""
        kv_heads = kv_heads or self.kv_heads
        blk = f"blk.{layer}."
        if norm:
            self.norm(blk + "attn_norm")
        self.matrix(blk + "attn_q.weight", self.width, self.heads * self.k_dim, gain=2)
        self.matrix(blk + "attn_k.weight", self.width, kv_heads * self.k_dim)
        self.matrix(blk + "attn_v.weight", self.width, kv_heads * self.v_dim)
        self.matrix(blk + "attn_output.weight", self.heads * self.v_dim, self.width, gain=2)

    def feed_forward(self, layer, *, gate=True):
        blk = f"blk.{layer}."
        self.norm(blk + "ffn_norm")
        if gate:
            self.matrix(blk + "ffn_gate.weight", self.width, self.inner)
        self.matrix(blk + "ffn_up.weight", self.width, self.inner)
        self.matrix(blk + "ffn_down.weight", self.inner, self.width)

    def write(self, folder):
        path = folder / f"{self.name}.gguf"
        gguf_file.write(path, self.fields, self.tensors)
        return path


def llama(name, *, frequency_factors=False, **more):
    """With factors that divide the frequencies of positions, as Llama 3 has them, or without."""
    model = Model(name, "llama", **more)
    model.outside()
    if frequency_factors:
        model.tensors["rope_freqs.weight"] = np.linspace(1, 8, model.k_dim // 2, dtype=np.float32)
    for layer in range(model.layers):
        model.attention(layer)
        model.feed_forward(layer)
    return model


def gemma2(name):
    """Every other layer sees a window of 40 tokens; scores are capped."""
    model = Model(name, "gemma2", layers=4, attention__sliding_window=40, attn_logit_softcapping=2.0,
                  final_logit_softcapping=30.0)
    model.outside(output=False)
    for layer in range(model.layers):
        model.attention(layer)
        model.norm(f"blk.{layer}.post_attention_norm")
        model.feed_forward(layer)
        model.norm(f"blk.{layer}.post_ffw_norm")
    return model


def gemma3(name):
    """Two layers of a window of 40 tokens before each that sees all; norms of queries and keys. Positions turn slower
    where all is seen."""
    model = Model(name, "gemma3", layers=6, k_dim=64, attention__sliding_window=40, rope__freq_base=1000000.0,
                  attention__sliding_window_pattern=[True, True, False] * 2)
    model.outside(output=False)
    for layer in range(model.layers):
        model.attention(layer)
        for side in "qk":
            model.norm(f"blk.{layer}.attn_{side}_norm", model.k_dim)
        model.norm(f"blk.{layer}.post_attention_norm")
        model.feed_forward(layer)
        model.norm(f"blk.{layer}.post_ffw_norm")
    return model


def gemma3n(name):
    """Layers from the 20th on read the keys and values of earlier ones: attention without a write before it."""
    pattern = [True, True, True, True, False]
    model = Model(name, "gemma3n", layers=24, width=32, attention__sliding_window=40,
                  attention__sliding_window_pattern=(pattern * 5)[:24])
    n_streams, rank, per_layer, width = 4, 64, 256, model.width
    model.outside(output=False)
    model.matrix("altup_proj.weight", width, width, n_streams - 1)
    model.matrix("altup_unembd_proj.weight", width, width, n_streams - 1)
    model.matrix("per_layer_token_embd.weight", per_layer * model.layers, len(VOCABULARY))
    model.matrix("per_layer_model_proj.weight", width, per_layer * model.layers)
    model.norm("per_layer_proj_norm", per_layer)
    for layer in range(model.layers):
        blk = f"blk.{layer}."
        model.attention(layer)
        for side in "qk":  # scores are not divided by the root of the channels: without this they would be large
            model.vector(blk + f"attn_{side}_norm.weight", model.k_dim, mean=0.4)
        model.norm(blk + "post_attention_norm")
        model.feed_forward(layer)
        model.norm(blk + "post_ffw_norm")
        model.matrix(blk + "inp_gate.weight", width, per_layer)
        model.matrix(blk + "proj.weight", per_layer, width)
        model.norm(blk + "post_norm")
        model.matrix(blk + "altup_correct_coef.weight", n_streams, n_streams)
        model.vector(blk + "altup_correct_scale.weight", width, mean=1.0)
        model.matrix(blk + "altup_predict_coef.weight", n_streams, n_streams * n_streams)
        model.matrix(blk + "altup_router.weight", width, n_streams)
        model.norm(blk + "altup_router_norm")
        model.matrix(blk + "laurel_l.weight", width, rank)
        model.matrix(blk + "laurel_r.weight", rank, width)
        model.norm(blk + "laurel_post_norm")
    return model


def gpt_oss(name):
    """A logit of its own for each head that takes attention away (sinks), windows, two experts, both used."""
    n_experts = 2
    model = Model(name, "gpt-oss", attention__sliding_window=40, expert_count=n_experts, expert_used_count=n_experts,
                  expert_feed_forward_length=64)
    width, inner = model.width, model.inner
    model.outside()
    for layer in range(model.layers):
        blk = f"blk.{layer}."
        model.attention(layer)
        model.vector(blk + "attn_output.bias", width)
        model.vector(blk + "attn_sinks.weight", model.heads, mean=2.0, spread=1.0)
        model.norm(blk + "post_attention_norm")
        model.matrix(blk + "ffn_gate_inp.weight", width, n_experts)
        model.vector(blk + "ffn_gate_inp.bias", n_experts)
        for part, n_in, n_out in [("gate", width, inner), ("up", width, inner), ("down", inner, width)]:
            model.matrix(blk + f"ffn_{part}_exps.weight", n_in, n_out, n_experts)
            model.vector(blk + f"ffn_{part}_exps.bias", n_experts * n_out)
            model.tensors[blk + f"ffn_{part}_exps.bias"].shape = (n_experts, n_out)
    return model


def mpt(name):
    """Positions by ALiBi alone."""
    model = Model(name, "mpt", width=128, kv_heads=4, attention__max_alibi_bias=8.0)
    model.outside()
    for layer in range(model.layers):
        blk = f"blk.{layer}."
        model.norm(blk + "attn_norm")
        model.matrix(blk + "attn_qkv.weight", model.width, 3 * model.width, gain=1.4)
        model.matrix(blk + "attn_output.weight", model.width, model.width, gain=2)
        model.feed_forward(layer, gate=False)
    return model


def mimo2(name, *, nextn=0):
    """Keys of 48 channels, values of 32; windows in every other layer. After them `nextn` layers with windows that
    guess the token after the next one, from the last layer's output and the next token (multi-token prediction)."""
    model = Model(name, "mimo2", layers=2 + nextn, k_dim=48, v_dim=32, attention__sliding_window=40,
                  attention__sliding_window_pattern=[False, True] + [True] * nextn, rope__freq_base_swa=10000.0,
                  expert_feed_forward_length=64, nextn_predict_layers=nextn)
    model.outside()
    for layer in range(2):
        model.attention(layer)
        model.feed_forward(layer)
    for layer in range(2, model.layers):
        blk = f"blk.{layer}."
        model.norm(blk + "attn_norm")
        model.matrix(blk + "attn_qkv.weight", model.width,
                     (model.heads + model.kv_heads) * model.k_dim + model.kv_heads * model.v_dim)
        model.matrix(blk + "attn_output.weight", model.heads * model.v_dim, model.width, gain=2)
        model.feed_forward(layer)
        model.matrix(blk + "nextn.eh_proj.weight", 2 * model.width, model.width)
        model.norm(blk + "nextn.enorm")
        model.norm(blk + "nextn.hnorm")
    return model


def deepseek2(name, *, latent):
    """Latent attention: with `latent` one head of keys whose first channels are the values, and no V in the cache;
    without, as files from before that were read, keys of 48 channels and values of 32."""
    rank, rope, nope, v_dim = 64, 16, 32, 32
    model = Model(name, "deepseek2", kv_heads=1 if latent else 4, k_dim=rank + rope if latent else nope + rope,
                  v_dim=rank if latent else v_dim, attention__q_lora_rank=32, attention__kv_lora_rank=rank,
                  expert_count=2, expert_used_count=2, expert_shared_count=1, expert_feed_forward_length=64,
                  leading_dense_block_count=2, rope__dimension_count=rope, expert_weights_scale=1.0)
    if latent:
        model.fields["deepseek2.attention.key_length_mla"] = nope + rope
        model.fields["deepseek2.attention.value_length_mla"] = v_dim
    model.outside()
    for layer in range(model.layers):
        blk = f"blk.{layer}."
        model.norm(blk + "attn_norm")
        model.norm(blk + "attn_q_a_norm", 32)
        model.norm(blk + "attn_kv_a_norm", rank)
        model.matrix(blk + "attn_q_a.weight", model.width, 32)
        model.matrix(blk + "attn_q_b.weight", 32, model.heads * (nope + rope), gain=2)
        model.matrix(blk + "attn_kv_a_mqa.weight", model.width, rank + rope)
        if latent:
            model.matrix(blk + "attn_k_b.weight", nope, rank, model.heads)
            model.matrix(blk + "attn_v_b.weight", rank, v_dim, model.heads)
        else:
            model.matrix(blk + "attn_kv_b.weight", rank, model.heads * (nope + v_dim))
        model.matrix(blk + "attn_output.weight", model.heads * v_dim, model.width, gain=2)
        model.feed_forward(layer)
    return model


def jamba(name):
    """State-space layers beside attention."""
    inner, state, rank, conv = 128, 8, 4, 4
    model = Model(name, "jamba", layers=4, heads=2, kv_heads=1, attention__head_count_kv=[0, 1, 0, 1],
                  ssm__conv_kernel=conv, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank)
    model.outside()
    for layer in range(model.layers):
        blk = f"blk.{layer}."
        if layer % 2:
            model.attention(layer)
        else:
            model.norm(blk + "attn_norm")
            model.matrix(blk + "ssm_in.weight", model.width, 2 * inner)
            model.matrix(blk + "ssm_conv1d.weight", conv, inner)
            model.vector(blk + "ssm_conv1d.bias", inner)
            model.matrix(blk + "ssm_x.weight", inner, rank + 2 * state)
            for part, n in [("dt", rank), ("b", state), ("c", state)]:
                model.norm(blk + f"ssm_{part}_norm", n)
            model.matrix(blk + "ssm_dt.weight", rank, inner)
            model.vector(blk + "ssm_dt.bias", inner)
            model.tensors[blk + "ssm_a"] = np.tile(-np.arange(1, state + 1, dtype=np.float32), (inner, 1))
            model.vector(blk + "ssm_d", inner, mean=1.0)
            model.matrix(blk + "ssm_out.weight", inner, model.width)
        model.feed_forward(layer)
    return model


def lfm2(name, *, window=0):
    """Short convolutions beside attention; with `window` the attention sees that many tokens only."""
    model = Model(name, "lfm2", layers=4, heads=2, attention__head_count_kv=[0, 2, 0, 2], shortconv__l_cache=3,
                  **({"attention__sliding_window": window} if window else {}))
    model.outside(output=False)
    model.tensors["token_embd_norm.weight"] = model.tensors.pop("output_norm.weight")
    for layer in range(model.layers):
        blk = f"blk.{layer}."
        if layer % 2:
            model.attention(layer)
            for side in "qk":
                model.norm(blk + f"attn_{side}_norm", model.k_dim)
        else:
            model.norm(blk + "attn_norm")
            model.matrix(blk + "shortconv.conv.weight", 3, model.width)
            model.matrix(blk + "shortconv.in_proj.weight", model.width, 3 * model.width)
            model.matrix(blk + "shortconv.out_proj.weight", model.width, model.width)
        model.feed_forward(layer)
    return model


def qwen2vl(name):
    """Positions of three kinds, for time, height and width of a picture; biases of queries, keys and values."""
    model = Model(name, "qwen2vl", k_dim=16, rope__dimension_sections=[4, 2, 2, 0])
    model.outside()
    for layer in range(model.layers):
        model.attention(layer)
        for side, heads in [("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads)]:
            model.vector(f"blk.{layer}.attn_{side}.bias", heads * model.k_dim)
        model.feed_forward(layer)
    return model


def bert(name):
    """Sees all of its text at once, for embeddings; no cache."""
    model = Model(name, "bert", kv_heads=4, k_dim=16, pooling_type=1, attention__causal=False, context_length=512)
    model.fields["tokenizer.ggml.token_type_count"] = 1
    width = model.width
    model.matrix("token_embd.weight", width, len(VOCABULARY), gain=np.sqrt(width))
    model.matrix("token_types.weight", width, 1)
    model.matrix("position_embd.weight", width, 512, gain=4)
    norms = ["token_embd_norm"]
    for layer in range(model.layers):
        blk = f"blk.{layer}."
        model.attention(layer, norm=False)
        model.matrix(blk + "ffn_up.weight", width, model.inner)
        model.matrix(blk + "ffn_down.weight", model.inner, width)
        norms += [blk + "attn_output_norm", blk + "layer_output_norm"]
    for norm in norms:
        model.norm(norm)
        model.vector(norm + ".bias", width)
    return model


def t5(name):
    """An encoder and a decoder that reads it; a learned bias by distance."""
    model = Model(name, "t5", kv_heads=4, k_dim=16, attention__relative_buckets_count=32, decoder_start_token_id=1)
    width = model.width
    model.matrix("token_embd.weight", width, len(VOCABULARY), gain=np.sqrt(width))
    model.matrix("output.weight", width, len(VOCABULARY))
    for part, attentions in [("enc", ["attn"]), ("dec", ["attn", "cross_attn"])]:
        model.norm(f"{part}.output_norm")
        for layer in range(model.layers):
            blk = f"{part}.blk.{layer}."
            for attention in attentions:
                model.norm(blk + attention + "_norm")
                for side in ["q", "k", "v", "o"]:
                    model.matrix(f"{blk}{attention}_{side}.weight", width, width)
            model.matrix(blk + "attn_rel_b.weight", model.heads, 32)
            model.norm(blk + "ffn_norm")
            model.matrix(blk + "ffn_up.weight", width, model.inner)
            model.matrix(blk + "ffn_down.weight", model.inner, width)
    return model


# By name: how each is made.
MODELS = {
    "llama-gqa1-d64": lambda name: llama(name, heads=2, kv_heads=2, k_dim=64),
    "llama-gqa3-d64": lambda name: llama(name, heads=6, kv_heads=2, k_dim=64, frequency_factors=True),
    "llama-gqa8-d64": lambda name: llama(name, heads=8, kv_heads=1, k_dim=64, rope__scaling__type="yarn",
                                         rope__scaling__factor=4.0, rope__scaling__original_context_length=256),
    "llama-gqa3-d96": lambda name: llama(name, heads=3, kv_heads=1, k_dim=96),
    "llama-gqa8-d128": lambda name: llama(name, heads=8, kv_heads=1, k_dim=128),
    "llama-gqa1-d256": lambda name: llama(name, heads=1, kv_heads=1, k_dim=256),
    "llama-gqa3-d256": lambda name: llama(name, heads=3, kv_heads=1, k_dim=256),
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3n": gemma3n,
    "gpt-oss": gpt_oss,
    "mpt": mpt,
    "mimo2": mimo2,
    "mimo2-nextn": lambda name: mimo2(name, nextn=1),
    "deepseek2-plain": lambda name: deepseek2(name, latent=False),
    "deepseek2-latent": lambda name: deepseek2(name, latent=True),
    "llama-d512": lambda name: llama(name, heads=1, kv_heads=1, k_dim=512),
    "jamba": jamba,
    "lfm2": lfm2,
    "lfm2-window": lambda name: lfm2(name, window=40),
    "qwen2vl": qwen2vl,
    "bert": bert,
    "t5": t5,
}


def make(name, folder):
    return MODELS[name](name).write(folder)
