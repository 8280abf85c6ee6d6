// One step of FlexDraft through the C interface, on the SIMT emulator: joint attention of candidates and mask rows over
// a paged cache, sampling and acceptance of the draft, and the next draft from the mask group of the accepted length.
//
// The model is a single attention layer with made-up weights; its products are plain loops, because matrix products are
// the engine's own. On a GPU, operands are device addresses, the stream is the engine's, and tables are copied to the
// device before they are used.
//
//     cargo build -p flexdraft-ffi
//     cc -std=c11 -I ffi/include ffi/examples/step.c -L target/debug -lflexdraft_ffi -Wl,-rpath,target/debug -o step
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flexdraft.h"

enum {
    Q_HEADS = 2,
    KV_HEADS = 1,
    HEAD_DIM = 64,
    QKV_COLS = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM,
    HIDDEN = Q_HEADS * HEAD_DIM, // columns of the layer's output, which is also the model's last hidden state
    PAGES = 3,
    PAGE_SIZE = 16,
    CACHED = PAGES * PAGE_SIZE * KV_HEADS * HEAD_DIM,
    START = 20,     // n: the position of candidate 0
    DRAFTS = 2,     // v: draft tokens that are verified
    CANDIDATES = DRAFTS + 1,
    SLOTS = 4,      // S: slots per mask group, which draft SLOTS - 1 tokens
    GROUPS = DRAFTS + 1,
    ROWS = CANDIDATES + GROUPS * SLOTS,
    NEXT = SLOTS - 1, // rows of the next draft
    VOCAB = 50,
    STRIDE = 56,
    RANK = 8
};

typedef uint16_t Bf16;

static FlexdraftError error = {.struct_size = sizeof(FlexdraftError)};

static void check(int32_t status, const char *call) {
    if (status != FLEXDRAFT_OK) {
        fprintf(stderr, "%s: status %" PRId32 ": %s\n", call, status, error.text);
        exit(1);
    }
}
#define CHECK(call) check((call), #call)

static uint32_t noise_state = 1;

// Returns a number from -2 to 2 that bf16 holds exactly.
static float noise(void) {
    noise_state = noise_state * 1664525u + 1013904223u;
    return (float)((int)(noise_state >> 24) - 128) / 64.0f;
}

static float to_float(Bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

// Rounds to the nearest bf16, ties to even; the number is finite.
static Bf16 to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (Bf16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static void fill_bf16(Bf16 *out, size_t len) {
    for (size_t i = 0; i < len; i++) out[i] = to_bf16(noise());
}

static void fill_float(float *out, size_t len) {
    for (size_t i = 0; i < len; i++) out[i] = noise();
}

// Returns aligned memory for the kernels' wide loads, set to zeros.
static void *memory(size_t bytes) {
    size_t whole = (bytes + 63) / 64 * 64;
    void *result = aligned_alloc(64, whole ? whole : 64);
    if (!result) exit(2);
    return memset(result, 0, whole);
}

static FlexdraftBuffer buffer(void *data, uint64_t len, uint32_t dtype) {
    FlexdraftBuffer result = {.data = data, .len = len, .dtype = dtype};
    return result;
}

static FlexdraftBuffer workspace(uint64_t len) { return buffer(memory(len * 4), len, FLEXDRAFT_F32); }

// out[r][c] = sum of x[r][i] * weight[c][i], in order.
static void product(const Bf16 *x, int rows, const Bf16 *weight, int cols, int depth, float *out, int stride) {
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) {
            float sum = 0.0f;
            for (int i = 0; i < depth; i++) sum += to_float(x[r * depth + i]) * to_float(weight[c * depth + i]);
            out[r * stride + c] = sum / 8.0f;
        }
    }
}

static void print_hash(const char *name, const void *data, size_t bytes) {
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
    printf("%s %016" PRIx64 "\n", name, hash);
}

static FlexdraftRowSampling row_sampling(uint32_t purpose, uint64_t slot, uint64_t position) {
    FlexdraftSamplingParams params = {.struct_size = sizeof params,
                                      .temperature = 0.9f,
                                      .top_p = 1.0f,
                                      .purpose = purpose,
                                      .seed = 7,
                                      .slot = slot,
                                      .position = position};
    FlexdraftRowSampling row;
    CHECK(flexdraft_row_sampling(&params, &row, &error));
    return row;
}

int main(void) {
    if (flexdraft_abi_version() != FLEXDRAFT_ABI_VERSION) return 3;
    FlexdraftKernels *kernels = NULL;
    CHECK(flexdraft_open(FLEXDRAFT_EMULATOR, &kernels, &error));
    void *stream = NULL;

    // The rows of the pass: candidates 0 to v, and a mask group for every accepted length.
    const uint32_t pages[] = {2, 0};
    FlexdraftSequence sequence = {.struct_size = sizeof sequence,
                                  .pages = pages,
                                  .page_count = 2,
                                  .start = START,
                                  .candidates = CANDIDATES,
                                  .groups = (1u << GROUPS) - 1,
                                  .slots = SLOTS};
    FlexdraftPassRows rows = {.struct_size = sizeof rows,
                              .sequences = &sequence,
                              .sequence_count = 1,
                              .sequence_stride = sizeof sequence,
                              .pages = PAGES,
                              .page_size = PAGE_SIZE};
    FlexdraftPass *pass = NULL;
    CHECK(flexdraft_pass_open(kernels, stream, 1, 2, &pass, &error));
    CHECK(flexdraft_pass_upload(kernels, stream, pass, &rows, &error));

    // The layer: q, k and v of every row, the cache, the rotation, and joint attention.
    Bf16 *qkv = memory(ROWS * QKV_COLS * sizeof *qkv);
    Bf16 *k = memory(CACHED * sizeof *k), *v = memory(CACHED * sizeof *v);
    fill_bf16(qkv, ROWS * QKV_COLS);
    fill_bf16(k, CACHED);
    fill_bf16(v, CACHED);
    float *inv_freq = memory(HEAD_DIM / 2 * sizeof *inv_freq);
    for (int i = 0; i < HEAD_DIM / 2; i++) inv_freq[i] = 1.0f / (float)(1 + i);
    float *cos_sin = memory(ROWS * HEAD_DIM * sizeof *cos_sin);
    FlexdraftRopeTable rope = {.struct_size = sizeof rope,
                               .pass = pass,
                               .inv_freq = buffer(inv_freq, HEAD_DIM / 2, FLEXDRAFT_F32),
                               .cos_sin = buffer(cos_sin, ROWS * HEAD_DIM, FLEXDRAFT_F32),
                               .scale = 1.0f};
    CHECK(flexdraft_rope_table(kernels, stream, &rope, &error));
    const FlexdraftHeads heads = {.q_heads = Q_HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM};
    const uint64_t token = KV_HEADS * HEAD_DIM;
    const FlexdraftCache cache = {.k = buffer(k, CACHED, FLEXDRAFT_BF16),
                                  .v = buffer(v, CACHED, FLEXDRAFT_BF16),
                                  .k_page_stride = PAGE_SIZE * token,
                                  .k_token_stride = token,
                                  .k_head_stride = HEAD_DIM,
                                  .v_page_stride = PAGE_SIZE * token,
                                  .v_token_stride = token,
                                  .v_head_stride = HEAD_DIM};
    for (uint32_t kind = FLEXDRAFT_CANDIDATES; kind <= FLEXDRAFT_MASKS; kind++) {
        FlexdraftNormRopeAppend append = {.struct_size = sizeof append,
                                          .pass = pass,
                                          .heads = heads,
                                          .qkv = buffer(qkv, ROWS * QKV_COLS, FLEXDRAFT_BF16),
                                          .cos_sin = rope.cos_sin,
                                          .cache = cache,
                                          .eps = 1e-6f,
                                          .kind = kind};
        CHECK(flexdraft_norm_rope_append(kernels, stream, &append, &error));
    }
    FlexdraftAttentionSize attention_size = {
        .struct_size = sizeof attention_size, .pass = pass, .heads = heads, .rows = ROWS, .with_masks = 1};
    uint64_t len = 0;
    CHECK(flexdraft_attention_workspace_len(kernels, &attention_size, &len, &error));
    Bf16 *out = memory(ROWS * HIDDEN * sizeof *out);
    FlexdraftJointAttention attention = {.struct_size = sizeof attention,
                                         .pass = pass,
                                         .heads = heads,
                                         .qkv = buffer(qkv, ROWS * QKV_COLS, FLEXDRAFT_BF16),
                                         .cache = cache,
                                         .out = buffer(out, ROWS * HIDDEN, FLEXDRAFT_BF16),
                                         .workspace = workspace(len),
                                         .with_masks = 1};
    CHECK(flexdraft_joint_attention(kernels, stream, &attention, &error));
    print_hash("attention", out, ROWS * HIDDEN * sizeof *out);

    // The draft that the step before made: its logits, and the tokens that were drawn from them.
    Bf16 *head = memory(VOCAB * HIDDEN * sizeof *head);
    fill_bf16(head, VOCAB * HIDDEN);
    float *draft = memory(DRAFTS * STRIDE * sizeof *draft);
    fill_float(draft, DRAFTS * STRIDE);
    FlexdraftRowSampling *samplings = memory(NEXT * sizeof *samplings);
    for (int j = 0; j < DRAFTS; j++) samplings[j] = row_sampling(FLEXDRAFT_DRAFT_DRAW, (uint64_t)j + 1, START);
    FlexdraftRowStats *draft_stats = memory(DRAFTS * sizeof *draft_stats);
    CHECK(flexdraft_sample_workspace_len(NEXT, VOCAB, 1, &len, &error));
    const FlexdraftBuffer sample_workspace = workspace(len);
    FlexdraftSample sample_draft = {.struct_size = sizeof sample_draft,
                                    .vocab = VOCAB,
                                    .stride = STRIDE,
                                    .logits = buffer(draft, DRAFTS * STRIDE, FLEXDRAFT_F32),
                                    .sampling = buffer(samplings, DRAFTS, FLEXDRAFT_ROW_SAMPLING),
                                    .workspace = sample_workspace,
                                    .stats = buffer(draft_stats, DRAFTS, FLEXDRAFT_ROW_STATS)};
    CHECK(flexdraft_sample(kernels, stream, &sample_draft, &error));
    int32_t *tokens = memory(DRAFTS * sizeof *tokens);
    for (int j = 0; j < DRAFTS; j++) tokens[j] = draft_stats[j].token;

    // The target's distributions after every candidate, and the verdict.
    float *target = memory(CANDIDATES * STRIDE * sizeof *target);
    product(out, CANDIDATES, head, VOCAB, HIDDEN, target, STRIDE);
    FlexdraftRowSampling *target_samplings = memory(CANDIDATES * sizeof *target_samplings);
    for (int i = 0; i < CANDIDATES; i++) {
        target_samplings[i] = row_sampling(FLEXDRAFT_TARGET_DRAW, 0, START + (uint64_t)i + 1);
    }
    FlexdraftRowStats *target_stats = memory(CANDIDATES * sizeof *target_stats);
    FlexdraftSample sample_target = {.struct_size = sizeof sample_target,
                                     .vocab = VOCAB,
                                     .stride = STRIDE,
                                     .logits = buffer(target, CANDIDATES * STRIDE, FLEXDRAFT_F32),
                                     .sampling = buffer(target_samplings, CANDIDATES, FLEXDRAFT_ROW_SAMPLING),
                                     .workspace = sample_workspace,
                                     .stats = buffer(target_stats, CANDIDATES, FLEXDRAFT_ROW_STATS)};
    CHECK(flexdraft_sample(kernels, stream, &sample_target, &error));
    FlexdraftVerifySequence verification = {.struct_size = sizeof verification,
                                            .seed = 7,
                                            .position = START,
                                            .drafts = DRAFTS,
                                            .groups = (1u << GROUPS) - 1,
                                            .rule = FLEXDRAFT_REJECTION,
                                            .draft = FLEXDRAFT_DRAFT_LOGITS};
    FlexdraftVerify *verify = memory(sizeof *verify);
    CHECK(flexdraft_verify(&verification, verify, &error));
    CHECK(flexdraft_accept_workspace_len(1, VOCAB, &len, &error));
    FlexdraftVerdict *verdict = memory(sizeof *verdict);
    int32_t *committed = memory(FLEXDRAFT_MAX_COMMITTED * sizeof *committed);
    FlexdraftAccept accept = {.struct_size = sizeof accept,
                              .vocab = VOCAB,
                              .stride = STRIDE,
                              .sequences = buffer(verify, 1, FLEXDRAFT_VERIFY),
                              .tokens = buffer(tokens, DRAFTS, FLEXDRAFT_I32),
                              .target = buffer(target, CANDIDATES * STRIDE, FLEXDRAFT_F32),
                              .target_stats = buffer(target_stats, CANDIDATES, FLEXDRAFT_ROW_STATS),
                              .draft = buffer(draft, DRAFTS * STRIDE, FLEXDRAFT_F32),
                              .draft_stats = buffer(draft_stats, DRAFTS, FLEXDRAFT_ROW_STATS),
                              .workspace = workspace(len),
                              .arrived = buffer(memory(4), 1, FLEXDRAFT_U32),
                              .verdicts = buffer(verdict, 1, FLEXDRAFT_VERDICT),
                              .committed = buffer(committed, FLEXDRAFT_MAX_COMMITTED, FLEXDRAFT_I32)};
    CHECK(flexdraft_accept(kernels, stream, &accept, &error));
    printf("accepted %" PRId32 " of %d, bonus %" PRId32 ", cached %" PRId64 "\n", verdict->accepted, DRAFTS,
           verdict->bonus, verdict->cached_length);
    printf("committed");
    for (int i = 0; i <= verdict->accepted; i++) printf(" %" PRId32, committed[i]);
    printf("\n");

    // The next draft: the slots of the accepted length's mask group, corrected for the bonus token.
    FlexdraftDraftGroups draft_groups = {.struct_size = sizeof draft_groups,
                                         .groups = (1u << GROUPS) - 1,
                                         .first_slot = CANDIDATES,
                                         .slots = SLOTS,
                                         .rows = FLEXDRAFT_PASS_SLOTS};
    FlexdraftDraft *next_draft = memory(sizeof *next_draft);
    CHECK(flexdraft_draft(&draft_groups, next_draft, &error));
    int32_t *bonus = memory(4), *start = memory(4), *sources = memory(NEXT * 4), *draft_rows = memory(NEXT * 4);
    FlexdraftSelectDrafts select = {.struct_size = sizeof select,
                                    .drafts = buffer(next_draft, 1, FLEXDRAFT_DRAFT),
                                    .verdicts = accept.verdicts,
                                    .bonus = buffer(bonus, 1, FLEXDRAFT_I32),
                                    .starts = buffer(start, 1, FLEXDRAFT_I32),
                                    .sources = buffer(sources, NEXT, FLEXDRAFT_I32),
                                    .draft_rows = buffer(draft_rows, NEXT, FLEXDRAFT_I32)};
    CHECK(flexdraft_select_drafts(kernels, stream, &select, &error));
    Bf16 *slots = memory(NEXT * HIDDEN * sizeof *slots), *embedding = memory(HIDDEN * sizeof *embedding);
    FlexdraftGather gather = {.struct_size = sizeof gather,
                              .cols = HIDDEN,
                              .indices = select.sources,
                              .x = buffer(out, ROWS * HIDDEN, FLEXDRAFT_BF16),
                              .out = buffer(slots, NEXT * HIDDEN, FLEXDRAFT_BF16)};
    CHECK(flexdraft_gather(kernels, stream, &gather, &error));
    FlexdraftEmbed embed = {.struct_size = sizeof embed,
                            .cols = HIDDEN,
                            .ids = select.bonus,
                            .table = buffer(head, VOCAB * HIDDEN, FLEXDRAFT_BF16),
                            .out = buffer(embedding, HIDDEN, FLEXDRAFT_BF16)};
    CHECK(flexdraft_embed(kernels, stream, &embed, &error));
    Bf16 *w1 = memory(2 * RANK * HIDDEN * sizeof *w1), *w2 = memory(VOCAB * RANK * sizeof *w2);
    float *b2 = memory(VOCAB * sizeof *b2);
    fill_bf16(w1, 2 * RANK * HIDDEN);
    fill_bf16(w2, VOCAB * RANK);
    fill_float(b2, VOCAB);
    float of_bonus[RANK], of_slots[NEXT * RANK];
    product(embedding, 1, w1, RANK, HIDDEN, of_bonus, RANK);
    product(slots, NEXT, w1 + RANK * HIDDEN, RANK, HIDDEN, of_slots, RANK);
    Bf16 *bonus_half = memory(RANK * sizeof *bonus_half), *hidden = memory(NEXT * RANK * sizeof *hidden);
    for (int i = 0; i < RANK; i++) bonus_half[i] = to_bf16(of_bonus[i]);
    for (int i = 0; i < NEXT * RANK; i++) hidden[i] = to_bf16(of_slots[i]);
    FlexdraftSiluAdd silu = {.struct_size = sizeof silu,
                             .cols = RANK,
                             .x = buffer(hidden, NEXT * RANK, FLEXDRAFT_BF16),
                             .bonus = buffer(bonus_half, RANK, FLEXDRAFT_BF16),
                             .owner = buffer(memory(NEXT * 4), NEXT, FLEXDRAFT_I32)};
    CHECK(flexdraft_silu_add(kernels, stream, &silu, &error));
    float *next = memory(NEXT * STRIDE * sizeof *next);
    product(slots, NEXT, head, VOCAB, HIDDEN, next, STRIDE);
    for (int j = 0; j < NEXT; j++) samplings[j] = row_sampling(FLEXDRAFT_DRAFT_DRAW, (uint64_t)j + 1, (uint64_t)*start);
    FlexdraftRowStats *next_stats = memory(NEXT * sizeof *next_stats);
    FlexdraftSample sample_next = {.struct_size = sizeof sample_next,
                                   .vocab = VOCAB,
                                   .stride = STRIDE,
                                   .logits = buffer(next, NEXT * STRIDE, FLEXDRAFT_F32),
                                   .sampling = buffer(samplings, NEXT, FLEXDRAFT_ROW_SAMPLING),
                                   .rank = RANK,
                                   .hidden = buffer(hidden, NEXT * RANK, FLEXDRAFT_BF16),
                                   .weight = buffer(w2, VOCAB * RANK, FLEXDRAFT_BF16),
                                   .bias = buffer(b2, VOCAB, FLEXDRAFT_F32),
                                   .workspace = sample_workspace,
                                   .stats = buffer(next_stats, NEXT, FLEXDRAFT_ROW_STATS),
                                   .update = 1};
    CHECK(flexdraft_sample(kernels, stream, &sample_next, &error));
    print_hash("calibrated", next, NEXT * STRIDE * sizeof *next);
    printf("next draft");
    for (int j = 0; j < NEXT; j++) printf(" %" PRId32, next_stats[j].token);
    printf("\n");

    flexdraft_pass_close(pass);
    flexdraft_close(kernels);
    return 0;
}
