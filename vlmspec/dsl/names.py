"""Names that the emitted code has already, so that no document may use them."""

import builtins
import keyword

_PYTHON = frozenset(w.lower() for w in (*keyword.kwlist, "self", "cls", "torch", "nn", "math"))
# What `torch.nn.Module` has; listed here because reading a document needs no torch.
_MODULE = frozenset(
    "add_module apply bfloat16 buffers call_super_init children compile cpu cuda double "
    "dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter "
    "get_submodule half ipu load_state_dict modules mtia named_buffers named_children "
    "named_modules named_parameters parameters register_backward_hook register_buffer "
    "register_forward_hook register_forward_pre_hook register_full_backward_hook "
    "register_full_backward_pre_hook register_load_state_dict_post_hook "
    "register_load_state_dict_pre_hook register_module register_parameter "
    "register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ "
    "set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu "
    "zero_grad".split()
)
_EMITTED = frozenset(
    "alternates config config_class frequencies generate generates generation_defaults "
    "ignored_suffixes layer layer_cache new_cache num_parameters from_pretrained save_pretrained "
    "weight_map".split()
)
_GENERATION = frozenset(
    "attention_mask cache cos keys logits_to_keep mask past position_ids positions sin".split()
)

MODULES = _PYTHON | _MODULE | _EMITTED | _GENERATION | {"x"}
"""Names that a step cannot have: it becomes an attribute of an emitted class."""

COMPONENTS = MODULES | {"batch", "images", "model", "tokens"}
"""Names that a component cannot have: an attribute, a variable, the start of sizes' names."""

INPUTS = _PYTHON | (_GENERATION - {"attention_mask"}) | frozenset(dir(builtins)) | _EMITTED | {"x"}
"""Names that an input cannot have: it becomes an argument of the model's `forward`."""

SIZES = (
    _PYTHON
    | frozenset(dir(builtins))
    | frozenset("batch images keys layer tokens min max".split())
    | frozenset("check_choice data dataclass field from_json read_size to_json".split())
)
"""Names that a size cannot have: it becomes a field of an emitted config."""

ARCHITECTURES = frozenset(
    "cache checkpoint-mixin concat config entry f generation-mixin kv-cache model module "
    "numbered output "
    "stack tensor tied weight".split()
)
"""Names that an architecture cannot have: its class would hide one that the emitted code uses."""
