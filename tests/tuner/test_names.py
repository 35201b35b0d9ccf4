import pytest

from lrlora.tuner.names import block_of, kind_of, type_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.layer.3.attention.self.query", "attention"),
        ("encoder.layer.3.attention.output.dense", "attention"),
        ("encoder.layer.3.intermediate.dense", "mlp"),
        ("encoder.layer.3.output.dense", "mlp"),
        ("model.layers.0.self_attn.o_proj", "attention"),
        ("model.layers.0.mlp.down_proj", "mlp"),
        ("model.layers.0.block_sparse_moe.experts.3.w1", "mlp"),
        ("transformer.h.1.attn.c_proj", "attention"),
        ("transformer.h.1.mlp.c_proj", "mlp"),
        ("encoder.block.0.layer.0.SelfAttention.q", "attention"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0", "mlp"),
        ("model.decoder.layers.2.fc1", "mlp"),
        ("distilbert.transformer.layer.1.ffn.lin2", "mlp"),
        ("backbone.layers.4.mixer.in_proj", "other"),
        ("pooler.dense", "other"),
        ("lm_head", "other"),
    ],
)
def test_kind(name, kind):
    assert kind_of(name) == kind


def test_block_and_type():
    assert block_of("model.layers.11.self_attn.q_proj") == 11
    assert block_of("pooler.dense") is None
    assert type_of("model.layers.11.self_attn.q_proj") == "self_attn.q_proj"
    assert type_of("model.layers.0.block_sparse_moe.experts.3.w1") == "block_sparse_moe.experts.*.w1"
    assert type_of("pooler.dense") == "pooler.dense"
