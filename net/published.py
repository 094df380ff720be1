"""The published FILM checkpoints (IVF.pth, MIF.pth, MEF.pth, MFF.pth): their names and ours.

They hold {'model': {'module.' + name: tensor}, 'epoch', 'step'}, 189 tensors. A name is a module and
what comes after it; each half has its table.
"""

from torch import Tensor

from utils.errors import InputError

MODULES = {
    "text_process.conv": "text_projection",
    "restormer1": "decoder.restormer1.0",
    "conv1": "decoder.reduce",
    "restormer2": "decoder.restormer2.0",
    "restormer3": "decoder.restormer3.0",
    "conv2": "decoder.output",
} | {
    f"restormerca{stage}.{published}": f"stages.{stage - 1}.{source.lower()}.{ours}"
    for stage in (1, 2, 3)
    for source, attention in (("A", "cross_attentionA1"), ("B", "cross_attentionA2"))  # A2 is B's
    for published, ours in {
        f"conv{source}1": "conv_in",
        f"prelu{source}1": "act_in",
        f"restormer{source}1": "restormer.0",
        f"imagef2textf{source}1.conv": "to_tokens",
        f"{attention}.multihead_attn": "guidance",
        f"conv{source}2": "conv_gate",
        f"prelu{source}2": "act_gate",
        f"conv{source}3": "conv_out",
        f"prelu{source}3": "act_out",
    }.items()
}

PARAMETERS = {
    "in_proj_weight": "in_proj.weight",
    "in_proj_bias": "in_proj.bias",
    "norm1.body.weight": "norm1.weight",
    "norm1.body.bias": "norm1.bias",
    "attn.temperature": "attention.temperature",
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.qkv_dwconv.weight": "attention.qkv_depthwise.weight",
    "attn.project_out.weight": "attention.project.weight",
    "norm2.body.weight": "norm2.weight",
    "norm2.body.bias": "norm2.bias",
    "ffn.project_in.weight": "feed_forward.expand.weight",
    "ffn.dwconv.weight": "feed_forward.depthwise.weight",
    "ffn.project_out.weight": "feed_forward.project.weight",
}


def is_published(state: dict[str, Tensor]) -> bool:
    """True where a state dict has the published names."""
    return any(name.removeprefix("module.").startswith("restormerca1.") for name in state)


def our_name(name: str) -> str:
    """The name in `FILM().state_dict()` of a published tensor; InputError if the published network has none such."""
    name = name.removeprefix("module.")
    for published, ours in MODULES.items():
        if name.startswith(published + "."):
            rest = name[len(published) + 1 :]
            return f"{ours}.{PARAMETERS.get(rest, rest)}"
    raise InputError(f"the tensor '{name}' is not one of the published FILM network")


def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names. The text projection, a Conv1d of kernel 1, becomes a linear layer."""
    return {our_name(name): tensor.squeeze(-1) if "text_process" in name else tensor for name, tensor in state.items()}
