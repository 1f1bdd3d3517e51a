"""A plain GPT-2 in PyTorch, the baseline for our training step: nanoGPT's architecture without biases.

Axes: B batch, T positions, N heads, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, stream_BTD: Tensor) -> Tensor:
        """Returns the stream after this block."""
        batch, length, width = stream_BTD.shape
        projected = self.query_key_value(self.attention_norm(stream_BTD)).split(width, dim=2)
        q, k, v = (x.view(batch, length, self.heads, -1).transpose(1, 2) for x in projected)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        stream_BTD = stream_BTD + self.output(mixed)
        hidden = F.gelu(self.up(self.feed_forward_norm(stream_BTD)), approximate="tanh")
        return stream_BTD + self.down(hidden)


class GPT2(nn.Module):
    """Returns the mean loss, as nanoGPT's model does."""

    def __init__(self, layers: int, width: int, heads: int, length: int, vocab_size: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                to_residual = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if to_residual else 1))

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean negative log-likelihood of the targets."""
        stream = self.tokens(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        logits = F.linear(self.final_norm(stream), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten())


class PyTorchStep:
    """One training step: forward, backward, clipping, AdamW (fused, PyTorch's fastest).

    On a GPU the products have bfloat16 factors and the parameters stay in float32.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        length: int,
        vocab_size: int,
        *,
        compiled: bool,
        device: str = "cpu",
    ):
        self._device = device
        model = GPT2(layers, width, heads, length, vocab_size).to(device)
        self._parameters = list(model.parameters())
        matrices = [parameter for parameter in self._parameters if parameter.dim() == 2]
        norms = [parameter for parameter in self._parameters if parameter.dim() != 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        self._model = torch.compile(model) if compiled else model

    def __call__(self, tokens_BT: Tensor, targets_BT: Tensor) -> float:
        """Takes a step and returns the loss before it."""
        with torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"):
            loss = self._model(tokens_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()
