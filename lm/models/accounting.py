"""What a model costs, known from its shape alone.

Symbols: L layers, D width, N query heads, K key-value heads, H head width, F feed-forward width, V vocabulary,
T length.
"""

from lm.modules.config import ModelConfig

# Dense (not sparse) 16-bit matrix peak of one device, FLOP/s, from the vendors' data sheets, by JAX's `device_kind`.
PEAK_FLOPS: dict[str, float] = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def matrix_parameters(config: ModelConfig) -> int:
    """Weights that each token is multiplied with: every linear map and the output matrix, but no embedding look-up."""
    heads, kv_heads, head_width = config.heads, config.num_kv_heads, config.size_per_head
    attention = config.width * head_width * (2 * heads + 2 * kv_heads)
    matrices = 3 if config.activation == "swiglu" else 2
    feed_forward = matrices * config.width * config.size_of_feed_forward
    return config.layers * (attention + feed_forward) + config.vocab_size * config.width


def parameter_count(config: ModelConfig) -> int:
    """The number of parameters of a `DecoderLM`, tied matrices counted once."""
    embeddings = 0 if config.tie_embeddings else config.vocab_size * config.width
    if config.positions == "learned":
        embeddings += config.max_length * config.width
    norm_biases = config.bias and config.normalization == "layer_norm"
    norms = (2 * config.layers + 1) * config.width * (2 if norm_biases else 1)
    biases = config.layers * _biases_per_layer(config) if config.bias else 0
    return matrix_parameters(config) + embeddings + norms + biases


def _biases_per_layer(config: ModelConfig) -> int:
    attention = (config.heads + 2 * config.num_kv_heads) * config.size_per_head + config.width
    up = 2 if config.activation == "swiglu" else 1
    return attention + up * config.size_of_feed_forward + config.width


def training_flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations to train on one token: forward and twice as many backward.

    6 per matrix weight, and 12 L N H T for the attention scores and mixtures, counted over all T keys although a causal
    mask needs half (Chowdhery et al. 2022, appendix B; the convention of nanoGPT). Rematerialization is not counted, so
    this measures model FLOPs, not hardware FLOPs.
    """
    attention = 12 * config.layers * config.heads * config.size_per_head * length
    return 6 * matrix_parameters(config) + attention
