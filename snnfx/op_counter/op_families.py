"""Families of ATen operators that take no floating-point operation, by what they move.

Operators of a family share one rule in the tables of FLOPs and of bytes. Names that this version
of PyTorch lacks are left out when they are registered.
"""

from __future__ import annotations

from snnfx.op_counter.op_names import names

VIEWS = names("""
    view _unsafe_view _reshape_alias expand select slice narrow unbind split split_with_sizes
    unsafe_split unsafe_split_with_sizes t t_ transpose transpose_ permute unsqueeze unsqueeze_
    squeeze squeeze_ detach detach_ alias as_strided as_strided_ diagonal unfold lift lift_fresh
    real imag view_as_real view_as_complex _conj _neg_view slice_inverse chunk movedim
""")
"""Other shapes for memory that is there."""

ALLOCATIONS = names("""
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize_ resize_as_
    set_ _efficientzerotensor
""")
"""Memory that nothing has been written to."""

QUESTIONS = names("""
    size stride storage_offset numel dim sym_size sym_stride sym_numel sym_storage_offset
    is_same_size is_pinned record_stream _assert_async _functional_assert_async _assert_scalar
    _functional_assert_scalar _assert_tensor_metadata sym_constrain_range
    sym_constrain_range_for_size _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size
""")
"""Operators about tensors, not on them."""

FILLS = names("""
    zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange eye linspace
    scalar_tensor tril_indices triu_indices fill fill_ zero zero_ _foreach_zero _foreach_zero_
    rand randn randint randperm rand_like randn_like randint_like
    uniform uniform_ normal_ normal_functional random random_ exponential exponential_ geometric
    geometric_ cauchy cauchy_ log_normal log_normal_ bernoulli.p bernoulli_.float
""")
"""Results that depend on no operand: constants and random numbers."""

MOVES = names("""
    clone _to_copy contiguous stack _stack cat repeat flip roll tril tril_ triu triu_ rot90
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d
    select_backward slice_backward diagonal_backward unfold_backward
    value_selecting_reduction_backward
    select_scatter slice_scatter diagonal_scatter as_strided_scatter
    where masked_fill masked_fill_ masked_select masked_scatter nonzero
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col
    diag_embed diag repeat_interleave lift_fresh_copy _pin_memory _copy_from _copy_from_and_resize
    view_copy expand_copy select_copy slice_copy unbind_copy split_copy split_with_sizes_copy t_copy
    transpose_copy permute_copy unsqueeze_copy squeeze_copy detach_copy alias_copy as_strided_copy
    diagonal_copy unfold_copy narrow_copy _reshape_copy _foreach_clone
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d
    max_pool2d_with_indices_backward max_pool3d_with_indices_backward
    adaptive_max_pool2d_backward adaptive_max_pool3d_backward
    bernoulli bernoulli_ normal complex _local_scalar_dense one_hot _chunk_cat
    cudnn_is_acceptable _cudnn_rnn_flatten_weight _mkldnn_reshape _mkldnn_transpose
    mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight
""")
"""Elements that are read and written somewhere else, or chosen among."""

COPIES = ["copy_", "copy", "_foreach_copy_", "_foreach_copy"]
"""``copy_(written, read)``."""

GATHERS = names("""
    index _unsafe_index index_select gather take embedding
""")
"""Some elements of the first operand, at the places that the others say."""
