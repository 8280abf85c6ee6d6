// Chained Calibration: draws the tokens of a draft one after the other, each from logits that are corrected for the
// token of the previous slot. Three launches after the pass over the calibrated logits (sampling):
//
//   chain_choose_*  chooses the ids of the K largest logits of each draft row
//   chain_score_*   scores every pair of chosen ids of neighbouring rows, from factors that are matrix products
//   chain_walk      adds the scores to the logits and draws the tokens, row by row
//
// Registers per thread:
//
//   kernel                    sm_80   sm_90a
//   chain_choose_f32             48       56
//   chain_choose_bf16            48       56
//   chain_choose_f16             48       56
//   chain_score_f32              80       80
//   chain_score_bf16             80       80
//   chain_score_f16              80       80
//   chain_walk                   48       56
#include "choose.cuh"
#include "scores.cuh"
#include "walk.cuh"

FLEXDRAFT_KERNEL(chain_choose_f32, FlexdraftChooseParams, choose_threads, 4) {
    FLEXDRAFT_SHARED(shared);
    choose<float>(p, shared);
}
FLEXDRAFT_KERNEL(chain_choose_bf16, FlexdraftChooseParams, choose_threads, 4) {
    FLEXDRAFT_SHARED(shared);
    choose<bf16>(p, shared);
}
FLEXDRAFT_KERNEL(chain_choose_f16, FlexdraftChooseParams, choose_threads, 4) {
    FLEXDRAFT_SHARED(shared);
    choose<f16>(p, shared);
}

FLEXDRAFT_KERNEL(chain_score_f32, FlexdraftChainScoreParams, score_threads, 4) { score<float>(p); }
FLEXDRAFT_KERNEL(chain_score_bf16, FlexdraftChainScoreParams, score_threads, 4) { score<bf16>(p); }
FLEXDRAFT_KERNEL(chain_score_f16, FlexdraftChainScoreParams, score_threads, 4) { score<f16>(p); }

FLEXDRAFT_KERNEL(chain_walk, FlexdraftWalkParams, walk_threads, 4) {
    FLEXDRAFT_SHARED(shared);
    walk(p, shared);
}

FLEXDRAFT_KERNEL_TABLE(chain, chain_choose_f32, chain_choose_bf16, chain_choose_f16, chain_score_f32, chain_score_bf16,
                       chain_score_f16, chain_walk)
