"""Mistakes in the mixing library that its tests have to catch: at least one per property.

Each has the file, the original code, the mistake, and the test that has to fail.
"""

MUTANTS = {
    "the box is pasted elsewhere in the partner": (
        "pixels.py",
        "return x.at[plan.partner].get(",
        "return jnp.roll(x, 1, axis=1).at[plan.partner].get(",
        "test_mix.py::test_pixels_come_from_the_plan",
    ),
    "the box has no last row and column": (
        "pixels.py",
        "(low <= index) & (index < high)",
        "(low <= index) & (index < high - 1)",
        "test_mix.py::test_pixels_come_from_the_plan",
    ),
    "uint8 is blended without rounding": (
        "pixels.py",
        "blend = jnp.round(blend) if x.dtype == jnp.uint8 else blend",
        "blend = blend - 2 if x.dtype == jnp.uint8 else blend",
        "test_mix.py::test_pixels_come_from_the_plan",
    ),
    "lam is sampled and not the pasted area": (
        "sample.py",
        "kept = outside_fraction(boxes, sides) if correct_lam else",
        "kept = outside_fraction(boxes, sides) if not correct_lam else",
        "test_mix.py::test_share_and_lam_are_the_pixels_kept",
    ),
    "lam is the partner's area": (
        "plan.py",
        "return kept.astype(jnp.float32) / pixels.astype(jnp.float32)",
        "return pasted.astype(jnp.float32) / pixels.astype(jnp.float32)",
        "test_mix.py::test_share_and_lam_are_the_pixels_kept",
    ),
    "the area is divided by a constant": (
        "plan.py",
        "pixels = kept + lax.optimization_barrier(pasted)",
        "pixels = jnp.full(kept.shape, math.prod(sides))",
        "test_mix.py::test_lam_is_rounded_once_under_jit",
    ),
    "boxes are not clipped": (
        "sample.py",
        "return jnp.clip(frames, 0, np.asarray(sides, np.int32)[None, None])",
        "return frames",
        "test_mix.py::test_boxes_lie_inside_and_partners_in_the_batch",
    ),
    "pairs sample separately": (
        "sample.py",
        '"pair": lambda own, partner: jnp.minimum(own, partner),',
        '"pair": lambda own, partner: own,',
        "test_mix.py::test_boxes_lie_inside_and_partners_in_the_batch",
    ),
    "rotation by zero": (
        "sample.py",
        "jax.random.randint(key, (), 1, max(size, 2))",
        "jax.random.randint(key, (), 0, 1)",
        "test_mix.py::test_boxes_lie_inside_and_partners_in_the_batch",
    ),
    "pixels are multiplied by a mask": (
        "pixels.py",
        "return jnp.where(_inside(box, x.shape, axes), _pasted(plan, x), _blended(plan, x))",
        "m = _inside(box, x.shape, axes); return m * _pasted(plan, x) + (1 - m) * x",
        "test_mix.py::test_nan_outside_the_pasted_region_stays_out",
    ),
    "the window starts a pixel late": (
        "pixels.py",
        "start[axis] = jnp.minimum(box[0, 0, i], x.shape[axis] - shape[axis])",
        "start[axis] = jnp.minimum(box[0, 0, i] + 1, x.shape[axis] - shape[axis])",
        "test_mix.py::test_window_and_mask_give_the_same_bits",
    ),
    "the window is one size too small": (
        "pixels.py",
        "quarters = jnp.max(-(-4 * extent // sides))",
        "quarters = jnp.max(4 * extent // sides)",
        "test_mix.py::test_window_and_mask_give_the_same_bits_on_random_boxes",
    ),
    "a blend of weight zero is computed": (
        "pixels.py",
        "return jnp.where(ratio == 1, x, blend.astype(x.dtype))",
        "return blend.astype(x.dtype)",
        "test_mix.py::test_nan_of_a_partner_without_weight_stays_out_of_a_blend",
    ),
    "ids are compared in their own dtype": (
        "labels.py",
        "if labels.dtype.itemsize < 4:",
        "if False:",
        "test_mix.py::test_class_ids_of_any_dtype_meet_any_number_of_classes",
    ),
    "boxes are computed in their own dtype": (
        "pixels.py",
        "box = plan.box.astype(jnp.int32)",
        "box = plan.box",
        "test_mix.py::test_boxes_of_narrow_dtypes_are_as_good_as_wide_ones",
    ),
    "cells of long series overflow": (
        "pixels.py",
        "Fraction(*pair) for pair",
        "Fraction(*pair) if False else type('Whole', (), dict(numerator=pair[0],"
        " denominator=pair[1])) for pair",
        "test_mix.py::test_a_smaller_mask_of_a_long_series",
    ),
    "gathers do not specify the sharding of their result": (
        "pixels.py",
        "out_sharding=_explicit_sharding(x)",
        "out_sharding=None",
        "test_mix_mesh.py::test_a_sharded_batch_is_mixed_as_an_unsharded_one",
    ),
    "dtypes are promoted silently": (
        "pixels.py",
        "dtype = precise(x.dtype)",
        "dtype = jnp.promote_types(x.dtype, jnp.float32)",
        "test_mix_settings.py::test_no_setting_changes_a_bit",
    ),
    "infinity divided by infinity": (
        "sample.py",
        "jnp.where(jnp.isinf(odds), 1.0, odds)",
        "odds",
        "test_mix_settings.py::test_debugging_nans_finds_none_at_small_alpha",
    ),
    "fills wrap around": (
        "pixels.py",
        "if not ((low <= values) & (values <= high)).all():",
        "if False:",
        "test_mix.py::test_a_fill_that_pixels_cannot_hold_is_refused",
    ),
    "integer rows are not checked": (
        "labels.py",
        "if values.ndim == 2 and (low < 0 or high > 1):",
        "if False:",
        "test_mix.py::test_integer_rows_other_than_zeros_and_ones_raise_where_they_are_known",
    ),
    "label weights are swapped": (
        "labels.py",
        "return weighted(lam, values, partners(plan, values))",
        "return weighted(lam, partners(plan, values), values)",
        "test_mix.py::test_lam_is_the_weight_of_the_own_label",
    ),
    "both labels get lam": (
        "labels.py",
        "(1 - lam).astype(other.dtype)",
        "lam.astype(other.dtype)",
        "test_mix.py::test_labels_sum_to_one",
    ),
    "cells of a smaller mask are placed by their corners": (
        "pixels.py",
        "return -((of - 2 * box * side) // (2 * of))",
        "return box * side // of",
        "test_mix.py::test_a_batch_is_mixed_in_all_its_parts",
    ),
    "the box is on the first two axes": (
        "pixels.py",
        "low, high = (_per_example(box[:, end, i], len(shape)) for end in (0, 1))",
        "low, high = (_per_example(box[:, end, 0], len(shape)) for end in (0, 1))",
        "test_mix.py::test_any_layout_by_its_spatial_axes",
    ),
    "no gradient to the partner": (
        "pixels.py",
        "return x.at[plan.partner].get(",
        "return lax.stop_gradient(x).at[plan.partner].get(",
        "test_mix.py::test_gradients_flow_to_both_sources",
    ),
    "other samples under jit": (
        "sample.py",
        "    return _draw_cutmix(\n        key,",
        "    return _draw_cutmix(\n        jax.random.fold_in(key, check.is_concrete(key)),",
        "test_mix.py::test_jit_and_vmap_agree_with_eager",
    ),
    "other samples at each call": (
        "calls.py",
        "    return _mix_jitted(\n        key,",
        "    from time import time_ns as now\n    return _mix_jitted(\n"
        "        jax.random.fold_in(key, now() % 9973),",
        "test_mix.py::test_same_key_same_plan_and_no_batch_is_changed",
    ),
    "numbers keep their dtypes": (
        "calls.py",
        "numbers = checked_numbers(**{k: v for k, v in options.items() if k in NUMBERS})",
        "numbers = {k: v for k, v in options.items() if k in NUMBERS}",
        "test_mix.py::test_only_new_shapes_recompile",
    ),
    "devices sample their own boxes": (
        "sample.py",
        'if scope == "device" or (scope != "batch" and not across_devices):',
        "if not across_devices:",
        "test_mix_named.py::test_devices_share_a_draw_per_batch_and_have_partners_of_their_own",
    ),
    "partners are the same on all devices": (
        "sample.py",
        "partner_key = on_device(partner_key, axis_name)",
        "pass",
        "test_mix_named.py::test_devices_share_a_draw_per_batch_and_have_partners_of_their_own",
    ),
    "the authors' box loses no pixel": (
        "sample.py",
        '"paper": (lambda length: 2 * jnp.floor(length / 2), jnp.floor)',
        '"paper": (lambda length: jnp.floor(length), jnp.floor)',
        "test_mix_draws.py::test_lam_of_the_authors_box",
    ),
    "the exact box is off by half a pixel": (
        "sample.py",
        '"exact": (lambda length: jnp.floor(length + 0.5), lambda center: center)',
        '"exact": (lambda length: jnp.floor(length + 0.5), jnp.floor)',
        "test_mix_draws.py::test_center_is_uniform_and_the_exact_box_has_no_side",
    ),
    "a clipped box squeezes the partner": (
        "pixels.py",
        "other, frame = partners(plan, x), plan.frame.astype(jnp.int32)",
        "other, frame = partners(plan, x), plan.box.astype(jnp.int32)",
        "test_mix_resized.py::test_the_partner_is_cut_off_and_not_squeezed",
    ),
    "lambda has another distribution": (
        "sample.py",
        "-jnp.log1p(-size) / alpha",
        "-jnp.log1p(-size) / (1.05 * alpha)",
        "test_mix_draws.py::test_lambda_before_clipping_is_beta",
    ),
    "square root for any number of axes": (
        "sample.py",
        "(1 - lam) ** (1 / len(sides))",
        "jnp.sqrt(1 - lam)",
        "test_mix_draws.py::test_side_exponent_by_the_number_of_sides",
    ),
    "the normal center is half as wide": (
        "sample.py",
        "math.sqrt(2) * lax.erf_inv(",
        "0.5 * math.sqrt(2) * lax.erf_inv(",
        "test_mix_draws.py::test_center_gaussian",
    ),
    "equal words are ordered by their index": (
        "sample.py",
        "flip = words[0]",
        "flip = jnp.uint32(0)",
        "test_mix_draws.py::test_equal_words_of_the_permutation_fall_in_either_order",
    ),
    "the permutation leans to one end": (
        "sample.py",
        "words = jax.random.bits(key, (size,), jnp.uint32)",
        "words = jax.random.bits(key, (size,), jnp.uint32) >> lax.iota(jnp.uint32, size) // 2",
        "test_mix_draws.py::test_all_permutations_are_as_frequent",
    ),
}
