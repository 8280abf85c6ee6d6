//! The functions: each takes its arguments in order, fills the struct of the C interface, and runs it.

mod edits;
mod logits;
mod passes;
mod rows;
mod tables;

use std::ffi::c_void;

use super::call;

/// Exports functions under the names that TVM-FFI looks for.
macro_rules! exported {
    ($($symbol:ident: $family:ident::$function:ident),* $(,)?) => {$(
        #[doc = concat!("The TVM-FFI function `", stringify!($function), "`.")]
        ///
        /// # Safety
        ///
        /// `values` has `count` valid values, whose objects and tensors live until the launches have run and are not
        /// used by other calls meanwhile, except for reading; `result` is writable.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(
            _: *mut c_void,
            values: *const c_void,
            count: i32,
            result: *mut c_void,
        ) -> i32 {
            // SAFETY: the caller upholds the contract of this function.
            unsafe { call(stringify!($function), $family::$function, values.cast(), count, result.cast()) }
        }
    )*};
}

exported![
    __tvm_ffi_joint_attention: passes::joint_attention,
    __tvm_ffi_attention_workspace_len: passes::attention_workspace_len,
    __tvm_ffi_sample: logits::sample,
    __tvm_ffi_sample_partials: logits::sample_partials,
    __tvm_ffi_sample_workspace_len: logits::sample_workspace_len,
    __tvm_ffi_accept: logits::accept,
    __tvm_ffi_accept_workspace_len: logits::accept_workspace_len,
    __tvm_ffi_chain_choose: logits::chain_choose,
    __tvm_ffi_chain_score: logits::chain_score,
    __tvm_ffi_chain_walk: logits::chain_walk,
    __tvm_ffi_follow_verdicts: passes::follow_verdicts,
    __tvm_ffi_select_drafts: logits::select_drafts,
    __tvm_ffi_embed: rows::embed,
    __tvm_ffi_gather: rows::gather,
    __tvm_ffi_rms_norm: rows::rms_norm,
    __tvm_ffi_add: rows::add,
    __tvm_ffi_silu_mul: rows::silu_mul,
    __tvm_ffi_silu_add: rows::silu_add,
    __tvm_ffi_rope_table: passes::rope_table,
    __tvm_ffi_norm_rope_append: passes::norm_rope_append,
    __tvm_ffi_pass_tables: passes::pass_tables,
    __tvm_ffi_pass_upload: passes::pass_upload,
    __tvm_ffi_row_sampling: tables::row_sampling,
    __tvm_ffi_verify: tables::verify,
    __tvm_ffi_draft: tables::draft,
    __tvm_ffi_edit_rows: edits::edit_rows,
    __tvm_ffi_supports: tables::supports,
];
