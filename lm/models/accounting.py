"""Parameters and FLOPs of a model, computed from its shape alone.

Symbols: L layers, D width, N query heads, K key-value heads, H head width, F feed-forward width, V vocabulary,
S input length, T length.
"""

from lm.modules.config import ModelConfig
from lm.modules.feed_forward import GATED

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
    """Weights that tokens are multiplied by: every linear map and the output matrix, without embedding look-ups.

    For an encoder, without the prediction head's dense layer and the pooler, which few tokens pass through.
    """
    blocks = config.layers * _block_matrices(config)
    if config.architecture == "encoder_decoder":
        blocks += _decoder_layers(config) * (_block_matrices(config) + _attention_matrices(config))
    return blocks + _projection(config) + config.size_of_vocabulary * config.size_of_embedding


def parameter_count(config: ModelConfig) -> int:
    """The number of parameters, tied matrices counted once.

    For a decoder or an encoder-decoder, all of them; for an encoder, embeddings, blocks and pooler, as published for
    BERT, without the masked-LM and next-sentence heads used in pretraining.
    """
    if config.architecture == "encoder":
        width, bias = config.width, int(config.bias)
        return _embeddings(config) + _stack(config, config.layers) + width * (width + bias)
    count = _embeddings(config) + (0 if config.tie_embeddings else config.size_of_vocabulary * config.width)
    count += config.size_of_vocabulary if config.output_bias else 0
    if config.architecture == "encoder_decoder":
        count += _stack(config, config.layers)
        return count + _stack(config, _decoder_layers(config), cross_attention=True)
    return count + _stack(config, config.layers)


def training_flops_per_token(
    config: ModelConfig, length: int, input_length: int | None = None, predicted: float = 1.0
) -> int:
    """Floating-point operations to train on one token: forward, and twice as many backward.

    6 per matrix weight, and 12 L N H T for the attention scores and mixtures, counted over all T keys although a causal
    mask needs half (Chowdhery et al. 2022, appendix B; the convention of nanoGPT). Layers with a window count as many
    keys as it has. Rematerialization is not counted, so this measures model FLOPs, not hardware FLOPs.

    Args:
      config: the model's shape.
      length: T, of the model's input; for an encoder-decoder, of its output.
      input_length: S, of an encoder-decoder's input; None: as long as the output. The result is the mean over the
        tokens of both.
      predicted: the share of tokens (for an encoder-decoder, of output tokens) whose logits are computed. A masked LM
        needs only those of the masked tokens.
    """
    per_key = 12 * config.heads * config.size_per_head
    output_matrix = predicted * config.size_of_vocabulary * config.size_of_embedding
    if config.architecture != "encoder_decoder":
        weights = config.layers * _block_matrices(config) + _projection(config) + output_matrix
        return round(6 * weights + per_key * _keys(config, length))
    inputs, layers = input_length or length, _decoder_layers(config)
    # Cross-attention computes keys and values for input tokens, queries and outputs for output tokens.
    queries, keys = (2 * config.width * heads * config.size_per_head for heads in (config.heads, config.num_kv_heads))
    of_input = 6 * (config.layers * _block_matrices(config) + layers * keys) + per_key * config.layers * inputs
    of_output = 6 * (layers * (_block_matrices(config) + queries) + output_matrix)
    of_output += per_key * layers * (length + inputs)
    return round((inputs * of_input + length * of_output) / (inputs + length))


def _decoder_layers(config: ModelConfig) -> int:
    return config.decoder_layers or config.layers


def _keys(config: ModelConfig, length: int) -> int:
    """How many keys a token sees, summed over the layers."""
    if config.attention_window is None:
        return config.layers * length
    window = config.attention_window if config.architecture == "decoder" else 2 * (config.attention_window // 2) + 1
    everything = len(set(config.global_layers))
    return everything * length + (config.layers - everything) * min(window, length)


def _projection(config: ModelConfig) -> int:
    """Matrix weights between the embeddings and the stack."""
    return 0 if config.embedding_width is None else config.embedding_width * config.width


def _attention_matrices(config: ModelConfig) -> int:
    return config.width * config.size_per_head * (2 * config.heads + 2 * config.num_kv_heads)


def _block_matrices(config: ModelConfig) -> int:
    """Matrix weights of one block without cross-attention."""
    matrices = 3 if config.activation in GATED else 2
    return _attention_matrices(config) + matrices * config.width * config.size_of_feed_forward


def _embeddings(config: ModelConfig) -> int:
    width, sides = config.size_of_embedding, 2 if config.separate_embeddings else 1
    positions = config.position_offset + config.max_length if config.positions == "learned" else 0
    count = (config.size_of_vocabulary + config.segment_types + sides * positions) * width
    if config.embedding_width is not None:
        count += _projection(config) + config.width
    return count + (sides * _norm(config, width) if config.normalize_embeddings else 0)


def _stack(config: ModelConfig, layers: int, cross_attention: bool = False) -> int:
    norms = 2 if config.normalization_place == "both" else 1
    block = _block_matrices(config) + 2 * norms * _norm(config, config.width) + _query_key_norms(config)
    attention_biases = config.width if config.bias else 0
    if config.has_attention_bias:
        attention_biases += (config.heads + 2 * config.num_kv_heads) * config.size_per_head
    up = 2 if config.activation in GATED else 1
    block += attention_biases + (up * config.size_of_feed_forward + config.width if config.bias else 0)
    if cross_attention:
        block += _attention_matrices(config) + norms * _norm(config, config.width) + attention_biases
    relative = config.relative_buckets * config.heads if config.positions == "relative" else 0
    final_norm = 0 if config.normalization_place == "after" else _norm(config, config.width)
    # Scanned layers all have the norm that the first one then doesn't use.
    missing = 0 if config.first_norm or config.scan_layers else _norm(config, config.width)
    return layers * block + relative + final_norm - missing


def _query_key_norms(config: ModelConfig) -> int:
    heads = {"none": (), "head": (1, 1), "all": (config.heads, config.num_kv_heads)}[config.query_key_norm]
    return sum(_norm(config, each * config.size_per_head) for each in heads)


def _norm(config: ModelConfig, width: int) -> int:
    return width * (2 if config.bias and config.normalization == "layer_norm" else 1)
