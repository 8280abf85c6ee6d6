// The kernels of FlexDraft for C and C++: joint draft-and-verify attention, calibrated sampling, acceptance, and the
// operations around them, on a GPU or on the SIMT emulator. Link with the library flexdraft_ffi.
//
// cbindgen writes this file from the Rust sources in ffi/src; edit the sources and run
// `FLEXDRAFT_BLESS=1 cargo test --workspace --test interface`.
//
// Conventions
// - A function returns FLEXDRAFT_OK or another status code, and puts the reason for a failure into the caller's
//   FlexdraftError, which may be null. After an error nothing was launched, unless the code is FLEXDRAFT_RUNTIME.
// - Structs with a field `struct_size` are set to zeros first, then `struct_size` to sizeof the struct. A library that
//   knows more fields than its caller takes the fields that the caller does not have as zeros.
// - Operands are FlexdraftBuffers: a device address (on the emulator: a host address), a number of elements and their
//   type. A buffer of zeros is an absent operand.
// - The caller owns memory, workspaces and streams. A launch returns without waiting; operands must stay valid, and no
//   other work may use written operands, until the launch has run. The emulator runs a launch before the call returns.
// - The functions share no state. Functions may be called from several threads at once, except two calls with the
//   same FlexdraftPass if one of them changes the pass.
// - Nothing unwinds out of a function: a panic of the library is the status FLEXDRAFT_PANIC.
//
// clang-format off


#ifndef FLEXDRAFT_H
#define FLEXDRAFT_H

#include <stdint.h>

// Acceptance rule: draws the target's token with the random numbers of its position and accepts while drafts match. It
// is also the rule of greedy sequences.
#define FLEXDRAFT_MATCH 0

// Acceptance rule: speculative sampling (arXiv 2211.17192, 2302.01318).
#define FLEXDRAFT_REJECTION 1

// Acceptance rule: block verification (arXiv 2403.10444).
#define FLEXDRAFT_BLOCK 2

// Distribution of a draft: none, because each draft token is certain, as with the rule match or a lookup.
#define FLEXDRAFT_DRAFT_CERTAIN 0

// Distribution of a draft: rows of logits.
#define FLEXDRAFT_DRAFT_LOGITS 1

// Distribution of a draft: chosen ids of a draft with a chain.
#define FLEXDRAFT_DRAFT_CHAINED 2

// Number of entries per sequence in the committed tokens.
#define FLEXDRAFT_MAX_COMMITTED 64

// Type of elements: no elements; the buffer is absent.
#define FLEXDRAFT_ABSENT 0

// Type of elements: bfloat16, 2 bytes.
#define FLEXDRAFT_BF16 1

// Type of elements: IEEE single precision, 4 bytes.
#define FLEXDRAFT_F32 2

// Type of elements: signed integer of 4 bytes.
#define FLEXDRAFT_I32 3

// Type of elements: unsigned integer of 4 bytes.
#define FLEXDRAFT_U32 4

// Type of elements: IEEE half precision, 2 bytes.
#define FLEXDRAFT_F16 5

// Type of elements: FlexdraftRowSampling, 40 bytes.
#define FLEXDRAFT_ROW_SAMPLING 16

// Type of elements: FlexdraftRowStats, 48 bytes.
#define FLEXDRAFT_ROW_STATS 17

// Type of elements: FlexdraftVerify, 48 bytes.
#define FLEXDRAFT_VERIFY 18

// Type of elements: FlexdraftVerdict, 32 bytes.
#define FLEXDRAFT_VERDICT 19

// Type of elements: FlexdraftDraft, 32 bytes.
#define FLEXDRAFT_DRAFT 20

// Type of elements: FlexdraftRowEdits, 24 bytes.
#define FLEXDRAFT_ROW_EDITS 21

// Type of elements: FlexdraftLogitEdit, 16 bytes.
#define FLEXDRAFT_LOGIT_EDIT 22

// The version of this interface. A library with the same version accepts callers that were compiled with this header.
#define FLEXDRAFT_ABI_VERSION 1

// Device number of the SIMT emulator, which runs the kernels on the CPU, over host memory.
#define FLEXDRAFT_EMULATOR -1

// Device number of the SIMT emulator with checks of every memory access against the operands' bounds, and for races.
// Many times slower than FLEXDRAFT_EMULATOR.
#define FLEXDRAFT_CHECKED_EMULATOR -2

// Kind of rows: the candidate rows of a pass.
#define FLEXDRAFT_CANDIDATES 0

// Kind of rows: the mask rows of a pass.
#define FLEXDRAFT_MASKS 1

// Purpose of a draw: no random numbers. The token is the id of the largest logit; the other parameters still decide
// the row's probabilities.
#define FLEXDRAFT_NO_DRAW 0

// Purpose of a draw: a token of the target, or a draft token of the rule match. The position is the token's own, and
// the slot is 0.
#define FLEXDRAFT_TARGET_DRAW 1

// Purpose of a draw: a draft token of the rules rejection and block. The position is the position of candidate 0 of
// the step that will verify the draft, and the slot is the draft token's own, from 1 on.
#define FLEXDRAFT_DRAFT_DRAW 2

// Rows of a draft: mask rows of a pass, without logits yet. The first row is the row of slot 0; a group has S rows.
#define FLEXDRAFT_PASS_SLOTS 0

// Rows of a draft: rows of logits of every group. The first row is the row of slot 1; a group has S - 1 rows.
#define FLEXDRAFT_LOGIT_SLOTS 1

// Rows of a draft: mask rows of a pass whose slots predict the next position, so that slots 0 to S - 2 draft.
#define FLEXDRAFT_NEXT_SLOTS 2

// Status: the call succeeded.
#define FLEXDRAFT_OK 0

// Status: a required pointer or operand is null.
#define FLEXDRAFT_NULL 1

// Status: the size of a struct is not a size that this library knows.
#define FLEXDRAFT_STRUCT_SIZE 2

// Status: an operand has elements of another type than expected.
#define FLEXDRAFT_DTYPE 3

// Status: an operand has the wrong number of elements, or a workspace is too small.
#define FLEXDRAFT_LENGTH 4

// Status: the address of an operand is not a multiple of the required alignment.
#define FLEXDRAFT_ALIGNMENT 5

// Status: a pass or an operand belongs to another processor or stream than the launch.
#define FLEXDRAFT_QUEUE 6

// Status: the kernels do not support a shape.
#define FLEXDRAFT_UNSUPPORTED 7

// Status: a parameter is outside its range, or contradicts another parameter.
#define FLEXDRAFT_VALUE 8

// Status: the rows of a pass are invalid.
#define FLEXDRAFT_PASS_ROWS 9

// Status: a size or an index does not fit its integer type.
#define FLEXDRAFT_OVERFLOW 10

// Status: there is no CUDA driver or no such device, or the library was built without code for GPUs.
#define FLEXDRAFT_NO_DEVICE 11

// Status: memory ran out.
#define FLEXDRAFT_OUT_OF_MEMORY 12

// Status: the driver or the emulator reported an error.
#define FLEXDRAFT_RUNTIME 13

// Status: a kernel reported a fault in the device error word.
#define FLEXDRAFT_FAULT 14

// Status: the library panicked; the text has the panic's message.
#define FLEXDRAFT_PANIC 15

// The kernels, loaded on a processor.
typedef struct FlexdraftKernels FlexdraftKernels;

// The tables of a pass on the device: the rows and the pages of each sequence. A caller makes the tables once for its
// largest batch, uploads each step's rows, and uses the tables in every layer.
typedef struct FlexdraftPass FlexdraftPass;

// The verification of one sequence, for `flexdraft_verify`. Row `first_target` + i of the target has the distribution
// of the token after draft token i, for i = 0 to `drafts`. Token `first_token` + i - 1 is draft token i.
typedef struct FlexdraftVerifySequence {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Seed of the request's random numbers.
    uint64_t seed;
    // Position n of candidate 0.
    uint64_t position;
    // Number v of draft tokens, 0 to 63.
    uint64_t drafts;
    // The target's row of candidate 0.
    uint64_t first_target;
    // The row of the first draft token's logits; used with FLEXDRAFT_DRAFT_LOGITS.
    uint64_t first_draft;
    // The row of the first draft token's statistics, and of its chosen ids; used unless the draft is certain.
    uint64_t first_draft_stats;
    // Index of the first draft token in `tokens`.
    uint64_t first_token;
    // The accepted lengths for which the pass has a mask group: bit k stands for accepted length k.
    uint64_t groups;
    // FLEXDRAFT_MATCH, FLEXDRAFT_REJECTION or FLEXDRAFT_BLOCK; FLEXDRAFT_MATCH at temperature 0.
    uint32_t rule;
    // FLEXDRAFT_DRAFT_CERTAIN, FLEXDRAFT_DRAFT_LOGITS or FLEXDRAFT_DRAFT_CHAINED.
    uint32_t draft;
} FlexdraftVerifySequence;

// One sequence whose draft tokens are verified, in device memory. `flexdraft_verify` makes it.
typedef struct FlexdraftVerify {
    // The library's representation.
    uint64_t words[6];
} FlexdraftVerify;

// The reason why a call failed, in memory of the caller. Set `struct_size` before the call.
typedef struct FlexdraftError {
    // Size in bytes of the caller's struct, at least 32. A caller may have a longer `text` than this declaration; the
    // size states its length.
    uint64_t struct_size;
    // Written: the status code that the function returns.
    int32_t status;
    // Written: the number of bytes of the whole text without its terminating zero. The text was cut if this number
    // does not fit `text`.
    uint32_t text_bytes;
    // Written: the text in UTF-8, with a terminating zero. It names the operand or parameter, the expected value, and
    // the value that was found. Empty after FLEXDRAFT_OK.
    char text[496];
} FlexdraftError;

// An operand in memory of the caller, on the device. A buffer of zeros is absent, which only optional operands may be.
typedef struct FlexdraftBuffer {
    // Address of the first element: on a GPU a device address, on the emulator a host address.
    void *data;
    // Number of elements.
    uint64_t len;
    // Type of the elements: FLEXDRAFT_BF16, FLEXDRAFT_F32, and so on.
    uint32_t dtype;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftBuffer;

// The operands of `flexdraft_accept`.
typedef struct FlexdraftAccept {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Number of token ids, 1 to 2^20.
    uint64_t vocab;
    // Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    uint64_t stride;
    // FLEXDRAFT_VERIFY `[batch]`.
    struct FlexdraftBuffer sequences;
    // Draft tokens of all sequences, i32.
    struct FlexdraftBuffer tokens;
    // Logits of the target, f32, bf16 or f16 `[target_rows, stride]`, aligned to 16 bytes.
    struct FlexdraftBuffer target;
    // Statistics of the target's rows, FLEXDRAFT_ROW_STATS `[target_rows]`, from `flexdraft_sample`.
    struct FlexdraftBuffer target_stats;
    // Optional. The workspace of the `flexdraft_sample` call that wrote `target_stats`, as that call left it. With it,
    // the kernel skips the parts of the vocabulary in which no id is kept; the result is the same.
    struct FlexdraftBuffer target_partials;
    // Optional. Logits of the drafts, of the target's type, `[draft_rows, stride]`, aligned to 16 bytes.
    struct FlexdraftBuffer draft;
    // Statistics of the draft rows, FLEXDRAFT_ROW_STATS `[draft_rows]`; absent if every draft is certain.
    struct FlexdraftBuffer draft_stats;
    // K: number of chosen ids per row of drafts with a chain, 1 to 32; 0 without a chain.
    uint64_t chosen_count;
    // The chosen ids, i32 `[draft_rows, K]`; absent without a chain.
    struct FlexdraftBuffer chosen_ids;
    // The chained logits of the chosen ids, f32 `[draft_rows, K]`; absent without a chain.
    struct FlexdraftBuffer chosen_logits;
    // f32, at least `flexdraft_accept_workspace_len` elements, aligned to 8 bytes; its contents do not matter.
    struct FlexdraftBuffer workspace;
    // Counters, u32 `[batch]`, zeros before the first launch; every launch leaves zeros.
    struct FlexdraftBuffer arrived;
    // Written: FLEXDRAFT_VERDICT `[batch]`.
    struct FlexdraftBuffer verdicts;
    // Written: accepted tokens, bonus token, then -1; i32 `[batch, 64]`.
    struct FlexdraftBuffer committed;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
    // 1 if a sequence has the rule FLEXDRAFT_BLOCK, which needs a second launch.
    uint32_t any_block;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftAccept;

// The numbers and the size of the attention heads of a model.
typedef struct FlexdraftHeads {
    // Number of query heads: 1 to 16 for each KV head.
    uint64_t q_heads;
    // Number of KV heads.
    uint64_t kv_heads;
    // Elements per head: 64 or 128.
    uint64_t head_dim;
} FlexdraftHeads;

// The sizes from which `flexdraft_attention_workspace_len` computes the length of the workspace.
typedef struct FlexdraftAttentionSize {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The tables of the uploaded pass; null for a bound that holds for every pass within `rows` and `longest`.
    const struct FlexdraftPass *pass;
    // Numbers and size of the heads.
    struct FlexdraftHeads heads;
    // Number of rows of the operands.
    uint64_t rows;
    // The largest number of cached positions that a sequence sees; used without a pass.
    uint64_t longest;
    // Keys per split, or 0 for 512.
    uint64_t split;
    // 1 if the mask rows of the pass take part.
    uint32_t with_masks;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftAttentionSize;

// One layer of a paged KV cache. Strides are in elements and multiples of 8; the elements of a head are adjacent. The
// layouts `[page, token, head, dim]` and `[page, head, token, dim]` both work.
typedef struct FlexdraftCache {
    // Keys, bf16 or f16, aligned to 16 bytes. Their type is the type of all rows and caches of the call.
    struct FlexdraftBuffer k;
    // Values, of the type of `k`, aligned to 16 bytes.
    struct FlexdraftBuffer v;
    // Distance from a page of `k` to the next.
    uint64_t k_page_stride;
    // Distance from a token of `k` to the next within a page.
    uint64_t k_token_stride;
    // Distance from a head of `k` to the next within a token.
    uint64_t k_head_stride;
    // Distance from a page of `v` to the next.
    uint64_t v_page_stride;
    // Distance from a token of `v` to the next within a page.
    uint64_t v_token_stride;
    // Distance from a head of `v` to the next within a token.
    uint64_t v_head_stride;
} FlexdraftCache;

// Rows of heads in a separate tensor. The heads of a row are adjacent; rows may be parts of longer rows.
typedef struct FlexdraftHeadRows {
    // The memory of the rows, of the cache's type, from the first element of row 0 to at least the last element of the
    // last row, aligned to 16 bytes.
    struct FlexdraftBuffer rows;
    // Distance from a row to the next in elements, a multiple of 8; 0 for rows without gaps.
    uint64_t stride;
} FlexdraftHeadRows;
// No rows.
#define FlexdraftHeadRows_ABSENT (FlexdraftHeadRows){ .rows = FlexdraftBuffer_ABSENT, .stride = 0 }

// The operands of `flexdraft_joint_attention`.
typedef struct FlexdraftJointAttention {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The tables of the pass whose rows attend.
    const struct FlexdraftPass *pass;
    // Numbers and size of the heads.
    struct FlexdraftHeads heads;
    // q, k and v heads of every row, after `flexdraft_norm_rope_append`, of the cache's type: `[rows, (q_heads + 2
    // kv_heads) * head_dim]`, aligned to 16 bytes. The kernel reads the k and v of mask rows here, and the k and v of candidates
    // in the cache. Rows after the rows of the pass are padding. Absent if `q` is present.
    struct FlexdraftBuffer qkv;
    // The KV cache of the layer.
    struct FlexdraftCache cache;
    // Written: the output of each row, of the cache's type: `[rows, q_heads * head_dim]`, aligned to 16 bytes; zeros for
    // padding.
    struct FlexdraftBuffer out;
    // Optional. Written: the natural logarithm of the sum of exp(score), f32 `[rows, q_heads]`; -inf for padding.
    struct FlexdraftBuffer lse;
    // f32, at least `flexdraft_attention_workspace_len` elements, aligned to 8 bytes; its contents do not matter.
    struct FlexdraftBuffer workspace;
    // Optional. The device error word, u32 `[1]`, see `flexdraft_faults`.
    struct FlexdraftBuffer error_word;
    // Keys per split of a long sequence, a multiple of 64, or 0 for 512. Results with another split differ in
    // rounding.
    uint64_t split;
    // 1 if the mask rows of the pass take part; 0 below the tail layers, which have only candidate rows.
    uint32_t with_masks;
    // Unused; 0.
    uint32_t reserved;
    // q heads of the candidate rows in a separate tensor, `[candidates, q_heads * head_dim]`, in place of `qkv`;
    // absent if the pass has no candidates.
    struct FlexdraftHeadRows q;
    // q heads of the mask rows, `[mask rows, q_heads * head_dim]`, in place of `qkv`; absent if no mask rows take part.
    struct FlexdraftHeadRows mask_q;
    // k heads of the mask rows, `[mask rows, kv_heads * head_dim]`, with `mask_q`.
    struct FlexdraftHeadRows mask_k;
    // v heads of the mask rows, `[mask rows, kv_heads * head_dim]`, with `mask_q`.
    struct FlexdraftHeadRows mask_v;
    // Optional. A score for each query head, f32 `[q_heads]`, that joins the softmax of every row without a key or a
    // value (attention sinks, as in gpt-oss). It counts in `lse`.
    struct FlexdraftBuffer sinks;
    // The number of positions that a row sees up to its own (sliding window), at least 65; 0 for no window. A row at
    // position p sees the cached positions above p - window, and a mask row all slots of its group.
    uint64_t window;
    // The cap c of a soft cap, 1 to 1000: a score s becomes c * tanh(s / c); 0 for no cap.
    float soft_cap;
    // Unused; 0.
    uint32_t unused;
} FlexdraftJointAttention;

// The operands of `flexdraft_chain_choose`.
typedef struct FlexdraftChainChoose {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Number of token ids, 1 to 2^20.
    uint64_t vocab;
    // Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    uint64_t stride;
    // K: number of ids chosen per row, 1 to 32 and at most `vocab`.
    uint64_t count;
    // The calibrated logits, f32, bf16 or f16 `[logit_rows, stride]`, aligned to 16 bytes.
    struct FlexdraftBuffer logits;
    // Optional. The row of `logits` of each row, i32 `[rows]`; -1 makes a row padding.
    struct FlexdraftBuffer logit_index;
    // The workspace of the `flexdraft_sample_partials` or `flexdraft_sample` call for the same rows, as that call left
    // it: f32, exactly `flexdraft_sample_workspace_len` elements.
    struct FlexdraftBuffer partials;
    // Written: the chosen ids in descending order of their logits, i32 `[rows, K]`.
    struct FlexdraftBuffer ids;
    // Written: the logits of the chosen ids, NaN as -inf, f32 `[rows, K]`.
    struct FlexdraftBuffer chosen;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
    // 1 if the call that left `partials` had a calibrator.
    uint32_t calibrated;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftChainChoose;

// The operands of `flexdraft_chain_score`.
typedef struct FlexdraftChainScore {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Number of elements per factor, above 0.
    uint64_t rank;
    // K: number of chosen ids per row, 1 to 32.
    uint64_t count;
    // Number of drafts.
    uint64_t drafts;
    // Factors of the previous tokens: of the bonus token of each draft, then of the chosen ids of each row; f32
    // `[drafts + rows * K, before_stride]`, aligned to 16 bytes.
    struct FlexdraftBuffer before;
    // Elements from one factor in `before` to the next: a multiple of 8, at least `rank`.
    uint64_t before_stride;
    // Factors of the chosen ids as scored tokens, f32, bf16 or f16 `[rows * K, after_stride]`, aligned to 16 bytes.
    struct FlexdraftBuffer after;
    // Elements from one factor in `after` to the next: a multiple of 8, at least `rank`.
    uint64_t after_stride;
    // The draft of each row, i32 `[rows]`. The rows of a draft follow each other in the order of their slots.
    struct FlexdraftBuffer owners;
    // Written: entry `[a][b]` of a row is the score of its id b after id a of the row before; f32 `[rows, K, K]`. The
    // first row of a draft gets only the entries `[0][b]`, the scores after the bonus token.
    struct FlexdraftBuffer scores;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
} FlexdraftChainScore;

// The operands of `flexdraft_chain_walk`.
typedef struct FlexdraftChainWalk {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // K: number of chosen ids per row, 1 to 32.
    uint64_t count;
    // The drafts with their rows, FLEXDRAFT_DRAFT `[drafts]`.
    struct FlexdraftBuffer drafts;
    // Optional. The operand of `flexdraft_chain_choose`, i32 `[rows]`.
    struct FlexdraftBuffer logit_index;
    // FLEXDRAFT_ROW_SAMPLING `[rows]`. Top-k counts among the chosen ids.
    struct FlexdraftBuffer sampling;
    // Optional. Positions from which relative draws count, i32 `[sequences]`.
    struct FlexdraftBuffer starts;
    // The chosen ids, i32 `[rows, K]`.
    struct FlexdraftBuffer ids;
    // The scores, f32 `[rows, K, K]`.
    struct FlexdraftBuffer scores;
    // Logits of the chosen ids, which the chained logits replace, f32 `[rows, K]`.
    struct FlexdraftBuffer chosen;
    // Written: FLEXDRAFT_ROW_STATS `[rows]`, of logits that are -inf outside the chosen ids.
    struct FlexdraftBuffer stats;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
} FlexdraftChainWalk;

// The logit processors of one sequence and the tokens before its rows, for `flexdraft_edit_rows`. All tables are in host
// memory. The processors act in this order: penalties, bias, forbidden ids, masks.
typedef struct FlexdraftEditedRows {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // V: number of token ids, 1 to 2^20.
    uint64_t vocab;
    // Index of the sequence's first row among the rows of the call of `flexdraft_sample`.
    uint64_t first_row;
    // 0 for rows of the target: row i follows draft token i, and there are `draft_count` + 1 rows. 1 to 64 for this
    // number of rows of a draft, which no token before a row changes: only bias, bad words of one id and masks act.
    uint64_t draft_rows;
    // Ids of the prompt and of the output, up to the newest token, `[token_count]`.
    const uint32_t *tokens;
    // Number of ids in `tokens`.
    uint64_t token_count;
    // Number of ids in `tokens` that belong to the prompt.
    uint64_t prompt_len;
    // Ids of the draft tokens that the step verifies, `[draft_count]`.
    const uint32_t *draft;
    // Number of draft tokens.
    uint64_t draft_count;
    // Ids that `min_tokens` forbids, `[stop_count]`.
    const uint32_t *stop_ids;
    // Number of ids in `stop_ids`.
    uint64_t stop_count;
    // Number of output tokens before which `stop_ids` are forbidden; 0 is off.
    uint64_t min_tokens;
    // Ids to which `bias` is added, each once, `[bias_count]`.
    const uint32_t *bias_ids;
    // The numbers that are added, finite, `[bias_count]`.
    const float *bias;
    // Number of ids in `bias_ids`.
    uint64_t bias_count;
    // Ids of the bad words, one word after the other. An id that would complete a word in prompt and output is forbidden.
    const uint32_t *bad_words;
    // Number of ids of each bad word, above 0, `[bad_word_count]`.
    const uint64_t *bad_word_lens;
    // Number of bad words.
    uint64_t bad_word_count;
    // Optional. The allowed ids of all rows, `[ceil(vocab / 32)]`: bit id % 32 of word id / 32.
    const uint32_t *allowed;
    // Optional. The allowed ids of each row, in addition to `allowed`, `[rows, ceil(vocab / 32)]`.
    const uint32_t *allowed_by_row;
    // Repetition penalty (arXiv 1909.05858), above 0: divides positive logits of the ids in `tokens` and in the draft
    // before a row, and multiplies negative logits of these ids; 1 is off.
    float repetition_penalty;
    // Frequency penalty: subtracted from an id's logit for each of its occurrences in the output; 0 is off.
    float frequency_penalty;
    // Presence penalty: subtracted from the logits of ids that occur in the output; 0 is off.
    float presence_penalty;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftEditedRows;

// The edits of one row of logits, in device memory. `flexdraft_edit_rows` makes it.
typedef struct FlexdraftRowEdits {
    // The library's representation.
    uint32_t words[6];
} FlexdraftRowEdits;

// The change of one id's logit in some rows of a sequence, in device memory. `flexdraft_edit_rows` makes it.
typedef struct FlexdraftLogitEdit {
    // The library's representation.
    uint32_t words[4];
} FlexdraftLogitEdit;

// Tables of edits in host memory of the caller, to which `flexdraft_edit_rows` adds. The caller sets the three counts to 0
// before the first sequence of a step, and after the last sequence copies the tables to the device.
typedef struct FlexdraftEditTables {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Written: the edits of each row, `[row_count]`. Every row that is sampled must be written, also without edits.
    struct FlexdraftRowEdits *row_edits;
    // Number of rows of the call of `flexdraft_sample`.
    uint64_t row_count;
    // Written: places of edits, `[offset_room]`. A sequence with edits adds ceil(vocab / 1024) + 1 entries.
    int32_t *offsets;
    // Number of entries for which `offsets` has room.
    uint64_t offset_room;
    // Read and written: number of entries of `offsets` that are used.
    uint64_t offset_count;
    // Written: the edits, `[edit_room]`. A sequence adds at most token_count + draft_count + bias_count + stop_count +
    // bad_word_count * (draft_count + 1) entries.
    struct FlexdraftLogitEdit *edits;
    // Number of entries for which `edits` has room.
    uint64_t edit_room;
    // Read and written: number of entries of `edits` that are used.
    uint64_t edit_count;
    // Written: masks of allowed ids, `[mask_room]`. A sequence with a mask adds ceil(vocab / 32) words, and with masks by
    // row as many per row.
    uint32_t *masks;
    // Number of words for which `masks` has room.
    uint64_t mask_room;
    // Read and written: number of words of `masks` that are used.
    uint64_t mask_count;
} FlexdraftEditTables;

// The rows of one sequence in a pass. Candidate i is at position `start` + i. Slot j of the mask group of accepted
// length k is at position `start` + k + 1 + j; it sees the positions up to `start` + k and all slots of its group.
typedef struct FlexdraftSequence {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Page ids of the KV cache in host memory, `[page_count]`: position p is in page `pages[p / page_size]`.
    const uint32_t *pages;
    // Number of pages. The pages cover every cached position that a row of the sequence sees.
    uint64_t page_count;
    // Position n of candidate 0; the positions 0 to n − 1 are cached.
    uint64_t start;
    // Number of candidate rows; 0 in a drafting pass.
    uint64_t candidates;
    // Accepted length that bit 0 of `groups` stands for.
    uint64_t first_group;
    // Mask groups of the sequence: bit i stands for accepted length `first_group` + i.
    uint64_t groups;
    // Block size S: the number of slots per mask group, 1 to 64; ignored without groups.
    uint64_t slots;
} FlexdraftSequence;

// The rows of a pass: the candidate rows of every sequence in order, then the mask rows of every sequence. Groups are
// in ascending order, and slots in order within a group.
typedef struct FlexdraftPassRows {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The sequences in batch order, in host memory, `[sequence_count]`; each states its own size.
    const struct FlexdraftSequence *sequences;
    // Number of sequences.
    uint64_t sequence_count;
    // Bytes from one sequence to the next: sizeof(FlexdraftSequence) of the caller.
    uint64_t sequence_stride;
    // Number of pages of the KV cache; page ids are smaller.
    uint64_t pages;
    // Tokens per page: 1 to 15, or a multiple of 16 up to 65536. With 1, page ids are slots of tokens.
    uint64_t page_size;
} FlexdraftPassRows;

// The shapes of a model and its drafter, for `flexdraft_supports`.
typedef struct FlexdraftModelShape {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Numbers and size of the attention heads.
    struct FlexdraftHeads heads;
    // Number of token ids in the vocabulary.
    uint64_t vocab;
    // Elements in a row of the residual stream.
    uint64_t hidden;
    // Elements in a row of the MLP's activation.
    uint64_t intermediate;
    // Rank of the drafter's calibrator; 0 without a calibrator.
    uint64_t rank;
    // Rank of the drafter's chain, if its scores depend on hidden rows (the kind `hidden`); 0 for another chain, and without
    // a chain.
    uint64_t hidden_chain_rank;
} FlexdraftModelShape;

// The operands of `flexdraft_rope_table`.
typedef struct FlexdraftRopeTable {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The tables of the pass, whose positions give the angles.
    const struct FlexdraftPass *pass;
    // Inverse frequencies in radians per position, f32 `[head_dim / 2]`.
    struct FlexdraftBuffer inv_freq;
    // Written: cosine and sine of each row, f32 `[rows, head_dim / 2, 2]`, aligned to 8 bytes; zeros for padding rows.
    struct FlexdraftBuffer cos_sin;
    // The factor of cosine and sine, which is 1 for most models.
    float scale;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftRopeTable;

// The operands of `flexdraft_norm_rope_append`.
typedef struct FlexdraftNormRopeAppend {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The tables of the pass.
    const struct FlexdraftPass *pass;
    // Numbers and size of the heads.
    struct FlexdraftHeads heads;
    // q, k and v heads of every row, of the cache's type: `[rows, (q_heads + 2 kv_heads) * head_dim]`, aligned to 16
    // bytes; q, and the k of mask rows, change in place. In f16, results of at least 65520 become infinity. Absent if
    // `q`, `k` and `v` are present.
    struct FlexdraftBuffer qkv;
    // Cosines and sines from `flexdraft_rope_table`, f32 `[rows, head_dim / 2, 2]`, aligned to 8 bytes.
    struct FlexdraftBuffer cos_sin;
    // Optional. RMSNorm weight of a q head, f32 `[head_dim]`; with it, `k_norm` is present too.
    struct FlexdraftBuffer q_norm;
    // Optional. RMSNorm weight of a k head, f32 `[head_dim]`.
    struct FlexdraftBuffer k_norm;
    // Written: the KV cache of the layer gets k and v of candidates at their positions.
    struct FlexdraftCache cache;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
    // Epsilon, which the norms add to the mean of squares.
    float eps;
    // FLEXDRAFT_CANDIDATES or FLEXDRAFT_MASKS: the rows that the launch processes.
    uint32_t kind;
    // q heads in a separate tensor, `[rows, q_heads * head_dim]`, in place of `qkv`. This tensor, `k` and `v` have
    // only rows of this kind: row 0 is the first candidate row or the first mask row.
    struct FlexdraftHeadRows q;
    // k heads, `[rows, kv_heads * head_dim]`, with `q`.
    struct FlexdraftHeadRows k;
    // v heads, `[rows, kv_heads * head_dim]`, with `q`.
    struct FlexdraftHeadRows v;
} FlexdraftNormRopeAppend;

// The operands of `flexdraft_embed`. Rows are aligned to 16 bytes.
typedef struct FlexdraftEmbed {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Elements per row of the table, a multiple of 8.
    uint64_t cols;
    // Token ids, i32 `[rows]`. An id outside the table gives zeros and the fault 2.
    struct FlexdraftBuffer ids;
    // The embedding table, bf16 or f16 `[vocab, cols]`.
    struct FlexdraftBuffer table;
    // Written: the embedding of each id, of the type of `table`, `[rows, cols]`.
    struct FlexdraftBuffer out;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
} FlexdraftEmbed;

// The operands of `flexdraft_gather`. Rows are aligned to 16 bytes.
typedef struct FlexdraftGather {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Elements per row, a multiple of 8.
    uint64_t cols;
    // Row indices into `x`, i32 `[rows]`. -1 gives zeros; any other index outside `x` gives zeros and the fault 16.
    struct FlexdraftBuffer indices;
    // The rows to gather from, bf16 or f16 `[x_rows, cols]`.
    struct FlexdraftBuffer x;
    // Written: the gathered rows, of the type of `x`, `[rows, cols]`.
    struct FlexdraftBuffer out;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
} FlexdraftGather;

// The operands of `flexdraft_rms_norm`. Rows and weight are aligned to 16 bytes.
typedef struct FlexdraftRmsNorm {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The residual stream, bf16 or f16 `[rows, cols]`, with a multiple of 8 columns. Written if `delta` is present.
    struct FlexdraftBuffer x;
    // Optional. The values to add to the residual stream before the norm, of the type of `x`, `[rows, cols]`.
    struct FlexdraftBuffer delta;
    // The norm's weight, f32 `[cols]`.
    struct FlexdraftBuffer weight;
    // Written: the rows after the norm, of the type of `x`, `[rows, cols]`.
    struct FlexdraftBuffer out;
    // Epsilon, which is added to the mean of squares.
    float eps;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftRmsNorm;

// The operands of `flexdraft_add`.
typedef struct FlexdraftAdd {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The elements to add to, bf16 or f16, a multiple of 8, aligned to 16 bytes.
    struct FlexdraftBuffer x;
    // The elements to add, of the same type and number.
    struct FlexdraftBuffer delta;
} FlexdraftAdd;

// The operands of `flexdraft_silu_mul`. Rows are aligned to 16 bytes.
typedef struct FlexdraftSiluMul {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Elements per row of `out`, a multiple of 8.
    uint64_t cols;
    // Gate and up projection side by side, bf16 or f16 `[rows, 2 cols]`.
    struct FlexdraftBuffer x;
    // Written: the activation of each row, of the type of `x`, `[rows, cols]`.
    struct FlexdraftBuffer out;
} FlexdraftSiluMul;

// The operands of `flexdraft_silu_add`. Rows are aligned to 16 bytes.
typedef struct FlexdraftSiluAdd {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Elements per row, a multiple of 8.
    uint64_t cols;
    // The draft slots' half of the calibrator's hidden layer, bf16 or f16 `[rows, cols]`, which its activation
    // replaces.
    struct FlexdraftBuffer x;
    // The bonus tokens' half of the calibrator's hidden layer, of the type of `x`, `[bonus_rows, cols]`.
    struct FlexdraftBuffer bonus;
    // The row of `bonus` for each row, i32 `[rows]`. With -1 the row does not change; with any other index outside
    // `bonus` it does not change either, and the fault is 16.
    struct FlexdraftBuffer owner;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
} FlexdraftSiluAdd;

// The sampling parameters of one row, for `flexdraft_row_sampling`.
typedef struct FlexdraftSamplingParams {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Temperature; 0 is greedy.
    float temperature;
    // Probability mass to keep, above 0 and at most 1; 1 keeps all.
    float top_p;
    // Smallest probability to keep, relative to the largest, from 0 and below 1.
    float min_p;
    // FLEXDRAFT_NO_DRAW, FLEXDRAFT_TARGET_DRAW or FLEXDRAFT_DRAFT_DRAW.
    uint32_t purpose;
    // Number of largest logits to keep; 0 keeps all.
    uint64_t top_k;
    // Seed of the request's random numbers.
    uint64_t seed;
    // Slot that keys the random numbers, below 65536.
    uint64_t slot;
    // Position that keys the random numbers, or what is added to the sequence's start.
    uint64_t position;
    // 1 if `position` counts from the start of `sequence` in the operand `starts`; 0 if it is absolute.
    uint32_t relative;
    // Index of the sequence in `starts`; used if `relative` is 1.
    uint32_t sequence;
} FlexdraftSamplingParams;

// How one row of logits is warped and drawn from, in device memory. `flexdraft_row_sampling` makes it.
typedef struct FlexdraftRowSampling {
    // The library's representation.
    uint64_t words[5];
} FlexdraftRowSampling;

// The operands of `flexdraft_sample` and `flexdraft_sample_partials`.
typedef struct FlexdraftSample {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Number of token ids, 1 to 2^20.
    uint64_t vocab;
    // Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    uint64_t stride;
    // Logits, f32, bf16 or f16 `[logit_rows, stride]`, aligned to 16 bytes; written if `update` is 1, and by edits.
    struct FlexdraftBuffer logits;
    // Optional. The row of `logits` of each row, i32 `[rows]`; -1 makes a row padding. Without it, row r has logits
    // row r.
    struct FlexdraftBuffer logit_index;
    // FLEXDRAFT_ROW_SAMPLING `[rows]`.
    struct FlexdraftBuffer sampling;
    // Optional. Positions from which relative draws count, i32 `[sequences]`.
    struct FlexdraftBuffer starts;
    // Optional. A token per row whose probability is computed, i32 `[rows]`; -1 for none.
    struct FlexdraftBuffer draft;
    // Rank r of the calibrator, a multiple of 8; 0 without a calibrator. Then the three operands below are absent.
    uint64_t rank;
    // The calibrator's hidden layer u, bf16 or f16 `[rows, r]`, aligned to 16 bytes; of the type of the logits, if these
    // have 16 bits.
    struct FlexdraftBuffer hidden;
    // The calibrator's weight W2, of the type of `hidden`, `[vocab, r]`, aligned to 16 bytes.
    struct FlexdraftBuffer weight;
    // Optional. The calibrator's bias b2, f32 `[vocab]`.
    struct FlexdraftBuffer bias;
    // f32, at least `flexdraft_sample_workspace_len` elements; its contents do not matter.
    struct FlexdraftBuffer workspace;
    // Written: FLEXDRAFT_ROW_STATS `[rows]`.
    struct FlexdraftBuffer stats;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
    // 1 if the calibrated logits replace the logits, which the rules rejection and block need, and rows with top-k,
    // top-p or min-p.
    uint32_t update;
    // Unused; 0.
    uint32_t reserved;
    // Optional. The edits of each row, FLEXDRAFT_ROW_EDITS `[rows]`, which act before the row is sampled; the edited logits
    // replace the logits. Not with a calibrator. Without it, the three operands below are absent. `flexdraft_edit_rows`
    // makes the four tables.
    struct FlexdraftBuffer row_edits;
    // The places of edits, i32.
    struct FlexdraftBuffer edit_offsets;
    // The edits, FLEXDRAFT_LOGIT_EDIT.
    struct FlexdraftBuffer edits;
    // The masks of allowed ids, u32.
    struct FlexdraftBuffer masks;
} FlexdraftSample;

// The mask groups of a sequence, for `flexdraft_draft`.
typedef struct FlexdraftDraftGroups {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // Index of the sequence's verdict.
    uint64_t sequence;
    // The accepted lengths for which the pass has a mask group, as bits; 0 if its only group follows the verdict.
    uint64_t groups;
    // The first row of the sequence's first mask group.
    uint64_t first_slot;
    // Block size S: the number of slots per mask group, 1 to 64.
    uint64_t slots;
    // The first of the sequence's S - 1 draft rows.
    uint64_t first_draft;
    // FLEXDRAFT_PASS_SLOTS, FLEXDRAFT_LOGIT_SLOTS or FLEXDRAFT_NEXT_SLOTS.
    uint32_t rows;
    // Unused; 0.
    uint32_t reserved;
} FlexdraftDraftGroups;

// A sequence whose next draft comes from a mask group, in device memory. `flexdraft_draft` makes it.
typedef struct FlexdraftDraft {
    // The library's representation.
    uint64_t words[4];
} FlexdraftDraft;

// The operands of `flexdraft_select_drafts`.
typedef struct FlexdraftSelectDrafts {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // The sequences that draft, FLEXDRAFT_DRAFT `[drafts]`. Together they have every draft row once.
    struct FlexdraftBuffer drafts;
    // The results of the verification, FLEXDRAFT_VERDICT `[batch]`.
    struct FlexdraftBuffer verdicts;
    // Written: the bonus token of each sequence that drafts, i32 `[drafts]`.
    struct FlexdraftBuffer bonus;
    // Written: n + a + 1, the position of candidate 0 in the next step, i32 `[drafts]`.
    struct FlexdraftBuffer starts;
    // Written: the source of each draft row, i32 `[rows]`; -1 if the accepted length has no mask group.
    struct FlexdraftBuffer sources;
    // Written: the row of each draft row's logits, i32 `[rows]`; -1 as in `sources`.
    struct FlexdraftBuffer draft_rows;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
} FlexdraftSelectDrafts;

// The operands of `flexdraft_follow_verdicts`.
typedef struct FlexdraftFollowVerdicts {
    // Size of this struct in bytes.
    uint64_t struct_size;
    // A drafting pass with one mask group per sequence and no candidates, each laid out for the largest possible
    // accepted length. Its tables change on the device; the next upload restores them.
    struct FlexdraftPass *pass;
    // Index of each sequence's verdict, i32 `[batch of the pass]`.
    struct FlexdraftBuffer sequences;
    // The results of the verification, FLEXDRAFT_VERDICT `[batch]`.
    struct FlexdraftBuffer verdicts;
    // Optional. The device error word, u32 `[1]`.
    struct FlexdraftBuffer error_word;
} FlexdraftFollowVerdicts;

// The statistics of one row after sampling, in device memory. An id's score is (logit - max) * inverse_temperature. An
// id is kept if its score is above `cut_score`, or equal to it with an id of at most `cut_id`; its probability is
// exp(score - log_sum).
typedef struct FlexdraftRowStats {
    // The token that was drawn; without a draw, the id of the largest logit (ties to the lowest id).
    int32_t token;
    // The largest logit of the row.
    float max;
    // Natural logarithm of the sum of exp(score) over the kept ids; 0 at temperature 0.
    float log_sum;
    // Probability of `token`.
    float probability;
    // The largest probability at temperature 1, with nothing dropped; 0 if no logit is above −∞.
    float confidence;
    // Logit of `token`.
    float token_logit;
    // Probability of the row's token in the operand `draft`; 0 without a token.
    float draft_probability;
    // Reciprocal of the temperature; 0 for greedy rows.
    float inverse_temperature;
    // The lowest score that is kept; -inf if nothing is dropped.
    float cut_score;
    // The highest id that is kept among the ids with the lowest kept score.
    int32_t cut_id;
    // Number of kept ids.
    int32_t kept;
    // Fault of the row: 0 for none, 1 for a NaN, 2 for +inf, 3 if no id is allowed. No token of a target may come from
    // a faulty row.
    int32_t fault;
} FlexdraftRowStats;

// The result of verifying the draft tokens of one sequence, in device memory.
typedef struct FlexdraftVerdict {
    // Number a of accepted draft tokens; -1 if the sequence's rows or tokens do not exist, and no other field is set.
    int32_t accepted;
    // The bonus token, at position n + a + 1.
    int32_t bonus;
    // Probability of the bonus token in the target's distribution, after warping.
    float probability;
    // Rank of mask group a, which makes the next draft, among the groups of the pass; -1 if the pass has no such
    // group.
    int32_t group;
    // n + a + 1: the number of positions whose K and V stay in the cache.
    int64_t cached_length;
    // Fault of the target's row a, as in FlexdraftRowStats; after a fault there is no bonus token.
    int32_t fault;
    // Unused; 0.
    int32_t unused;
} FlexdraftVerdict;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Writes to `out` the verification of one sequence, in host memory, for the caller to copy to the device.
//
// Errors: FLEXDRAFT_VALUE for an unknown rule or draft, FLEXDRAFT_UNSUPPORTED for more than 63 draft tokens,
// FLEXDRAFT_OVERFLOW for an index beyond 2^31.
//
// # Safety
//
// `sequence`, `out` and `error` are null or valid.
int32_t flexdraft_verify(const struct FlexdraftVerifySequence *sequence,
                         struct FlexdraftVerify *out,
                         struct FlexdraftError *error);

// Writes to `len` the number of f32 elements of workspace that `flexdraft_accept` needs.
//
// Errors: FLEXDRAFT_OVERFLOW if the number is too large.
//
// # Safety
//
// `len` and `error` are null or valid.
int32_t flexdraft_accept_workspace_len(uint64_t batch, uint64_t vocab, uint64_t *len, struct FlexdraftError *error);

// Decides for every sequence how many draft tokens are accepted, and which bonus token follows them; one launch, or
// two with the rule block. The tokens have the target's own distribution.
//
// Fault in `error_word`: 16 for a sequence whose rows or tokens do not exist.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_accept(const struct FlexdraftKernels *kernels,
                         void *stream,
                         const struct FlexdraftAccept *args,
                         struct FlexdraftError *error);

// Writes to `len` the number of f32 elements of workspace that `flexdraft_joint_attention` needs: for the uploaded
// pass, or, if `size->pass` is null, for any pass of up to `rows` rows whose sequences see up to `longest` positions.
//
// Errors: FLEXDRAFT_OVERFLOW if the number is too large.
//
// # Safety
//
// `kernels` and the pass are null or open; `size`, `len` and `error` are null or valid.
int32_t flexdraft_attention_workspace_len(const struct FlexdraftKernels *kernels,
                                          const struct FlexdraftAttentionSize *size,
                                          uint64_t *len,
                                          struct FlexdraftError *error);

// Computes softmax(q K^T / sqrt(head_dim)) V over the keys that each row of the pass sees, for one layer: candidates
// and mask groups together, candidates alone, or groups alone. One launch, or two if the keys of a sequence are
// divided.
//
// Candidate i sees the cached positions 0 to n + i. A slot of group k sees the cached positions 0 to n + k, and all
// slots of its group. Products have operands of the cache's type, bf16 or f16, and f32 sums. A row's bits do not
// depend on the other rows of the batch.
//
// Faults in `error_word`: 1 for a page id out of range, 8 for a sequence that is longer than the workspace allows.
//
// Errors: FLEXDRAFT_NULL, FLEXDRAFT_DTYPE, FLEXDRAFT_LENGTH, FLEXDRAFT_ALIGNMENT, FLEXDRAFT_QUEUE or
// FLEXDRAFT_UNSUPPORTED for an operand or a shape that does not fit, FLEXDRAFT_RUNTIME for a failed launch.
//
// # Safety
//
// `kernels` and the pass are null or open, `stream` is alive, operands are valid for their sizes until the launch has
// run, `error` is null or valid for the size that it states.
int32_t flexdraft_joint_attention(const struct FlexdraftKernels *kernels,
                                  void *stream,
                                  const struct FlexdraftJointAttention *args,
                                  struct FlexdraftError *error);

// Chooses the ids of the K largest logits of each row, ties to the lowest id.
//
// Fault in `error_word`: 16 for an index outside the logits.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_chain_choose(const struct FlexdraftKernels *kernels,
                               void *stream,
                               const struct FlexdraftChainChoose *args,
                               struct FlexdraftError *error);

// Computes the scores of all pairs of chosen ids of neighbouring rows, as dot products of factors, with f32 sums in a
// fixed order.
//
// Fault in `error_word`: 16 for a row whose draft does not exist; the row gets no scores.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_chain_score(const struct FlexdraftKernels *kernels,
                              void *stream,
                              const struct FlexdraftChainScore *args,
                              struct FlexdraftError *error);

// Draws the tokens of each draft row by row, among the chosen ids of the row: the chained logit of an id is its logit
// plus its score after the previously drawn token.
//
// Fault in `error_word`: 16 for a draft whose rows do not exist, and for a sequence without a start.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_chain_walk(const struct FlexdraftKernels *kernels,
                             void *stream,
                             const struct FlexdraftChainWalk *args,
                             struct FlexdraftError *error);

// Adds the edits of a sequence's rows to tables in host memory, which `flexdraft_sample` takes in device memory. Launches
// nothing. Call it once per sequence of a step, also for a sequence without edits.
//
// Errors: FLEXDRAFT_VALUE for a parameter out of its range; FLEXDRAFT_LENGTH for a table without room, whose text says
// how much is needed; FLEXDRAFT_UNSUPPORTED for a vocabulary or a number of rows beyond the limits. After an error the
// tables hold what they held before.
//
// # Safety
//
// `rows`, `tables` and `error` are null or valid for the size that they state. The tables of `rows` are readable for the
// stated numbers of entries, and the tables of `tables` are writable for the rows and for the room that it states.
int32_t flexdraft_edit_rows(const struct FlexdraftEditedRows *rows,
                            struct FlexdraftEditTables *tables,
                            struct FlexdraftError *error);

// Allocates tables on the device for passes of up to `max_batch` sequences with up to `max_pages` pages each, and
// writes the object to `pass`. Launches that use the tables go to the same stream.
//
// Errors: FLEXDRAFT_OVERFLOW if the tables would have more than 2^31 entries; FLEXDRAFT_OUT_OF_MEMORY.
//
// # Safety
//
// `kernels` is null or open; `stream` is a cudaStream_t of the device's primary context that outlives the pass; `pass`
// is null or writable; `error` is null or valid for the size that it states.
int32_t flexdraft_pass_open(const struct FlexdraftKernels *kernels,
                            void *stream,
                            uint64_t max_batch,
                            uint64_t max_pages,
                            struct FlexdraftPass **pass,
                            struct FlexdraftError *error);

// Checks the rows of a pass and copies them to the tables, after all earlier work on `stream`. Sequences may share
// pages that they read; no two candidates may be appended to one token of a page. A captured graph must not contain an
// upload.
//
// Errors: FLEXDRAFT_PASS_ROWS if a sequence is invalid (the text names the sequence, the value that was found and the
// limit), FLEXDRAFT_UNSUPPORTED for another page size, FLEXDRAFT_QUEUE for another processor or stream than at
// `flexdraft_pass_open`. After an error the tables hold the earlier pass.
//
// # Safety
//
// `kernels` and `pass` are null or open, and no other call uses the pass; `rows`, its sequences and their page ids are
// null or readable for the sizes that are stated; `error` is null or valid for the size that it states.
int32_t flexdraft_pass_upload(const struct FlexdraftKernels *kernels,
                              void *stream,
                              struct FlexdraftPass *pass,
                              const struct FlexdraftPassRows *rows,
                              struct FlexdraftError *error);

// Frees the tables of a pass. Null is allowed. On a GPU this waits for the work on the device.
//
// # Safety
//
// `pass` is null, or came from `flexdraft_pass_open` and is not used again.
void flexdraft_pass_close(struct FlexdraftPass *pass);

// Returns FLEXDRAFT_ABI_VERSION of the library. A caller compares it with the constant of its header.
uint32_t flexdraft_abi_version(void);

// Returns the version of the library as text, such as "0.1.0". The text lives as long as the library.
const char *flexdraft_version(void);

// Loads the kernels on a processor and writes the object to `kernels`.
//
// `device` is the number of a CUDA device, from 0 on, whose primary context is used; or FLEXDRAFT_EMULATOR; or
// FLEXDRAFT_CHECKED_EMULATOR.
//
// Errors: FLEXDRAFT_NO_DEVICE without a driver, such a device, or code for GPUs in the library; FLEXDRAFT_VALUE for
// another negative number; FLEXDRAFT_RUNTIME if the driver cannot load the kernels.
//
// # Safety
//
// `kernels` is null or writable; `error` is null or valid for the size that it states.
int32_t flexdraft_open(int32_t device, struct FlexdraftKernels **kernels, struct FlexdraftError *error);

// Unloads the kernels. Null is allowed.
//
// # Safety
//
// `kernels` is null, or came from `flexdraft_open` and is not used again. Its launches have run.
void flexdraft_close(struct FlexdraftKernels *kernels);

// Checks that the kernels support the shapes of a model.
//
// Errors: FLEXDRAFT_UNSUPPORTED; the text names the first quantity that is beyond its limit, and the limit.
//
// # Safety
//
// `shape` and `error` are null or valid for the size that they state.
int32_t flexdraft_supports(const struct FlexdraftModelShape *shape, struct FlexdraftError *error);

// Computes the cosine and sine of every row's rotation angles (position times frequency), once for all layers of a
// step.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_rope_table(const struct FlexdraftKernels *kernels,
                             void *stream,
                             const struct FlexdraftRopeTable *args,
                             struct FlexdraftError *error);

// Applies the norms, if there are weights, and the rotation to q and k of the candidate rows or of the mask rows, and
// appends the candidates' k and v to the cache.
//
// Fault in `error_word`: 1 for a page id out of range, whose row is not written.
//
// Errors: as in `flexdraft_joint_attention`; FLEXDRAFT_NULL if one norm is present without the other.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_norm_rope_append(const struct FlexdraftKernels *kernels,
                                   void *stream,
                                   const struct FlexdraftNormRopeAppend *args,
                                   struct FlexdraftError *error);

// Copies the embeddings of token ids: `out[r] = table[ids[r]]`.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_embed(const struct FlexdraftKernels *kernels,
                        void *stream,
                        const struct FlexdraftEmbed *args,
                        struct FlexdraftError *error);

// Copies rows by index: `out[r] = x[indices[r]]`.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_gather(const struct FlexdraftKernels *kernels,
                         void *stream,
                         const struct FlexdraftGather *args,
                         struct FlexdraftError *error);

// Adds `delta`, if it is present, to `x`, rounds the sums to the type of `x`, and writes x / sqrt(mean(x^2) + eps) *
// weight for each row (arXiv 1910.07467, equation 4).
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_rms_norm(const struct FlexdraftKernels *kernels,
                           void *stream,
                           const struct FlexdraftRmsNorm *args,
                           struct FlexdraftError *error);

// Adds `delta` to `x`, with each sum rounded to the type of `x`.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_add(const struct FlexdraftKernels *kernels,
                      void *stream,
                      const struct FlexdraftAdd *args,
                      struct FlexdraftError *error);

// Computes the MLP's activation: `out[r] = silu(gate[r]) * up[r]`, where `silu(x) = x / (1 + exp(-x))`.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_silu_mul(const struct FlexdraftKernels *kernels,
                           void *stream,
                           const struct FlexdraftSiluMul *args,
                           struct FlexdraftError *error);

// Computes the hidden layer of the bonus-guided calibrator: `x[r] = silu(x[r] + bonus[owner[r]])`.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_silu_add(const struct FlexdraftKernels *kernels,
                           void *stream,
                           const struct FlexdraftSiluAdd *args,
                           struct FlexdraftError *error);

// Writes to `row` the sampling of one row, in host memory, for the caller to copy to the device.
//
// Errors: FLEXDRAFT_VALUE for a parameter out of its range.
//
// # Safety
//
// `params`, `row` and `error` are null or valid.
int32_t flexdraft_row_sampling(const struct FlexdraftSamplingParams *params,
                               struct FlexdraftRowSampling *row,
                               struct FlexdraftError *error);

// Writes to `len` the number of f32 elements of workspace that `flexdraft_sample` needs for `rows` rows. `calibrated`
// is 1 if there is a calibrator, otherwise 0.
//
// Errors: FLEXDRAFT_OVERFLOW if the number is too large.
//
// # Safety
//
// `len` and `error` are null or valid.
int32_t flexdraft_sample_workspace_len(uint64_t rows,
                                       uint64_t vocab,
                                       uint32_t calibrated,
                                       uint64_t *len,
                                       struct FlexdraftError *error);

// Draws a token from each row of logits, after temperature, top-k, top-p and min-p; two launches. With a calibrator,
// the logits become logits + W2 u + b2 first, rounded to their type. With edits, the logits of a row become the edited
// logits first.
//
// The draw is Gumbel-max with one Philox number per id, keyed by seed, purpose, slot and position. A row's result has
// the same bits in any batch. NaN counts as -inf; if no logit is above -inf, the token is id 0.
//
// Faults in `error_word`: 2 for a draft token outside the vocabulary, 4 for a NaN, 16 for an index out of range, 32
// for calibrated logits that were needed a second time but not stored.
//
// Errors: as in `flexdraft_joint_attention`; FLEXDRAFT_VALUE if calibrator operands come without a rank, or other tables of
// edits without `row_edits`; FLEXDRAFT_UNSUPPORTED for edits with a calibrator.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_sample(const struct FlexdraftKernels *kernels,
                         void *stream,
                         const struct FlexdraftSample *args,
                         struct FlexdraftError *error);

// Runs only the first of the two launches of `flexdraft_sample`: it calibrates or edits the logits and leaves the partial
// results in the workspace, which `flexdraft_chain_choose` reads. `stats` does not change.
//
// Errors: the errors of `flexdraft_sample`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_sample_partials(const struct FlexdraftKernels *kernels,
                                  void *stream,
                                  const struct FlexdraftSample *args,
                                  struct FlexdraftError *error);

// Writes to `out` a sequence that drafts, in host memory, for the caller to copy to the device.
//
// Errors: FLEXDRAFT_VALUE for unknown rows, FLEXDRAFT_UNSUPPORTED for a number of slots, FLEXDRAFT_OVERFLOW for an
// index beyond 2^31.
//
// # Safety
//
// `groups`, `out` and `error` are null or valid.
int32_t flexdraft_draft(const struct FlexdraftDraftGroups *groups,
                        struct FlexdraftDraft *out,
                        struct FlexdraftError *error);

// Selects, for every sequence that drafts, the rows of the mask group of its accepted length, its bonus token and its
// start, without a wait of the host.
//
// Fault in `error_word`: 16 for a draft whose rows or verdict do not exist.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`.
int32_t flexdraft_select_drafts(const struct FlexdraftKernels *kernels,
                                void *stream,
                                const struct FlexdraftSelectDrafts *args,
                                struct FlexdraftError *error);

// Moves the mask group of every sequence of a drafting pass to the sequence's accepted length, without a wait of the
// host.
//
// Fault in `error_word`: 16 for a sequence without a verdict, or with an accepted length beyond its layout.
//
// Errors: as in `flexdraft_joint_attention`.
//
// # Safety
//
// The conditions of `flexdraft_joint_attention`; no other call uses the pass.
int32_t flexdraft_follow_verdicts(const struct FlexdraftKernels *kernels,
                                  void *stream,
                                  const struct FlexdraftFollowVerdicts *args,
                                  struct FlexdraftError *error);

// Names the faults that kernels reported in the device error word `word`, which the caller has copied to the host.
// Returns FLEXDRAFT_OK if the word is 0, otherwise FLEXDRAFT_FAULT with a text that lists the faults.
//
// # Safety
//
// `error` is null, or valid for the size that it states.
int32_t flexdraft_faults(uint32_t word, struct FlexdraftError *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FLEXDRAFT_H */
