"""What each encoder's class in transformers takes for a key that `config.json` leaves out; see `models/defaults.py`."""

from jserve.models.defaults import Defaults

BERT: Defaults = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
XLM_ROBERTA = BERT | {"pad_token_id": 1}
ROBERTA = XLM_ROBERTA | {"vocab_size": 50265}
NOMIC_BERT = BERT | {
    "vocab_size": 30528,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
}
GTE = BERT | {"vocab_size": 250048, "max_position_embeddings": 8192, "type_vocab_size": 1, "pad_token_id": 1}
JINA_EMBEDDINGS_V3 = BERT | {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
MODERN_BERT: Defaults = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "tie_word_embeddings": True,
}
