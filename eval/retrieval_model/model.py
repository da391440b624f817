"""A small model of the Llama shape in PyTorch, and its GGUF file."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class Shape:
    n_vocabulary: int
    n_layers: int = 6
    width: int = 384
    n_heads: int = 6
    n_kv_heads: int = 2
    head: int = 64
    hidden: int = 768
    rope_base: float = 500000.0
    epsilon: float = 1e-5
    context: int = 8192


def angles(shape, positions):
    """Cosines and sines for RoPE, [position, head / 2]."""
    pair = torch.arange(0, shape.head, 2, device=positions.device, dtype=torch.float32) / shape.head
    angle = positions.float()[:, None] * shape.rope_base ** -pair
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotates neighbouring pairs of channels, the order that llama.cpp expects of this architecture.

    x: [token, head, channel]; cos, sin: [token, channel / 2].
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class Layer(nn.Module):
    """One layer, cut at the attention: both halves work on [token, width] whatever the batch's shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(shape.width))
        self.ffn_norm = nn.Parameter(torch.ones(shape.width))
        self.attn_q = nn.Linear(shape.width, shape.n_heads * shape.head, bias=False)
        self.attn_k = nn.Linear(shape.width, shape.n_kv_heads * shape.head, bias=False)
        self.attn_v = nn.Linear(shape.width, shape.n_kv_heads * shape.head, bias=False)
        self.attn_output = nn.Linear(shape.n_heads * shape.head, shape.width, bias=False)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def norm(self, x, weight):
        return F.rms_norm(x.float(), (self.shape.width,), weight, self.shape.epsilon)

    def before(self, x, cos, sin):
        """Queries, keys and values, [token, head, channel]."""
        y = self.norm(x, self.attn_norm)
        parts = [linear(y).unflatten(-1, (-1, self.shape.head)) for linear in (self.attn_q, self.attn_k, self.attn_v)]
        return rotate(parts[0], cos, sin), rotate(parts[1], cos, sin), parts[2]

    def after(self, x, attended):
        x = x + self.attn_output(attended)
        y = self.norm(x, self.ffn_norm)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocabulary, shape.width)
        self.blk = nn.ModuleList([Layer(shape) for _ in range(shape.n_layers)])
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                deep = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.04 / (2 * shape.n_layers) ** 0.5 if deep else 0.04)

    def forward(self, tokens):
        """Logits [sequence, token, vocabulary] of tokens [sequence, token]; every sequence begins at position 0."""
        n_sequences, length = tokens.shape
        cos, sin = (a.repeat(n_sequences, 1) for a in angles(self.shape, torch.arange(length, device=tokens.device)))
        x = self.token_embd(tokens.flatten())
        for layer in self.blk:
            q, k, v = (part.unflatten(0, (n_sequences, length)).transpose(1, 2) for part in layer.before(x, cos, sin))
            k, v = (part.repeat_interleave(self.shape.n_heads // self.shape.n_kv_heads, dim=1) for part in (k, v))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = layer.after(x, attended.transpose(1, 2).flatten(0, 1).flatten(1))
        y = F.rms_norm(x.float(), (self.shape.width,), self.output_norm, self.shape.epsilon)
        return F.linear(y, self.token_embd.weight).unflatten(0, (n_sequences, length))

    def compile(self):
        """Compiles both halves of a layer, once for all layers."""
        before, after = torch.compile(Layer.before), torch.compile(Layer.after)
        for layer in self.blk:
            layer.before, layer.after = before.__get__(layer), after.__get__(layer)


def save(model, path, pieces, description):
    """Writes the model as GGUF: matrices in 16 bits, norms in 32."""
    import gguf

    shape = model.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("retrieval")
    writer.add_description(description)
    writer.add_license("same as the repository")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(shape.n_vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, pieces)
    for name, weight in model.state_dict().items():
        name = name if name.endswith(".weight") else name + ".weight"
        writer.add_tensor(name, weight.cpu().numpy().astype("float16" if weight.ndim == 2 else "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer, pieces):
    import gguf

    writer.add_tokenizer_model("rwkv")  # the longest piece first; bytes escaped as in Python
    writer.add_token_list([repr(piece)[2:-1].encode() for piece in pieces])
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(pieces) - 1))
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def load(path):
    """The model of a GGUF file that `save` wrote, in 32 bits."""
    import gguf

    reader = gguf.GGUFReader(path)

    def number(key):
        return reader.fields[key].contents()

    shape = Shape(number("llama.vocab_size"), number("llama.block_count"), number("llama.embedding_length"),
                  number("llama.attention.head_count"), number("llama.attention.head_count_kv"),
                  number("llama.attention.key_length"), number("llama.feed_forward_length"),
                  number("llama.rope.freq_base"), number("llama.attention.layer_norm_rms_epsilon"),
                  number("llama.context_length"))
    model = Model(shape)
    tensors = {tensor.name: torch.tensor(tensor.data.copy()).float() for tensor in reader.tensors}
    names = {name: name if name.endswith(".weight") else name + ".weight" for name in model.state_dict()}
    model.load_state_dict({name: tensors[stored] for name, stored in names.items()})
    return model
