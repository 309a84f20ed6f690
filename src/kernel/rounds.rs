//! How long the loops of a kernel are: what a device allows, and what its constants say.

use super::Kernel;

/// Rounds of all loops of one invocation together. Some software adapters leave a loop after 65,535, and say nothing.
pub(crate) const MAX_ROUNDS: u64 = 32_000;

/// The largest batch whose samples have anything in common: kernels that look at all of them go round for each.
pub(crate) const MAX_BATCH: u64 = 1 << 16;

impl Kernel {
    /// Rounds that the loops of one invocation take together, those within others included.
    pub fn rounds(&self) -> u64 {
        let c = |name| u64::from(self.constant(name).unwrap_or(0));
        let wg = c("WG").max(1);
        // Kernels that look at whole samples: once over the values, lane by lane, and what it takes to add up lanes.
        let each = (c("LANES") / wg).max(1);
        let pass = |len: u64| each * (1 + len.div_ceil(c("LANES").max(1)));
        let sum = each + 16;
        match self.entry {
            "conv2d_forward" | "conv2d_input_grad" => c("IC4") * (1 + c("R") * (1 + c("S") * 5)) + 18,
            "conv2d_forward_tiled" | "conv2d_input_grad_tiled" => c("IC4") * c("R"),
            "conv2d_input_grad_parity" => c("IC4"),
            "conv2d_forward_broadcast" | "conv2d_input_grad_broadcast" => c("IC4") * c("R"),
            "conv2d_input_grad_parity_broadcast" => c("IC4") * c("R").div_ceil(2),
            // Columns, rows and places of a block; what leaves at the end.
            "conv2d_forward_winograd" | "conv2d_input_grad_winograd" => c("IC4") * (1 + 6 + 6 + 72) + 72 + 28,
            "conv2d_forward_winograd_products" | "conv2d_input_grad_winograd_products" => c("IC4"),
            "conv2d_forward_coop" | "conv2d_input_grad_coop" => {
                let steps = c("ICT") * c("R").div_ceil(c("STEP")) * c("S").div_ceil(c("STEP"));
                steps.div_ceil(c("LS")) + c("WORDS").div_ceil(wg) + c("STEP")
            }
            "linear_forward" | "linear_input_grad" | "linear_forward_broadcast" | "linear_input_grad_broadcast" => {
                c("L")
            }
            "conv2d_forward_workgroup"
            | "conv2d_input_grad_workgroup"
            | "linear_forward_workgroup"
            | "linear_input_grad_workgroup" => {
                let slabs = (c("IC4") * c("R").div_ceil(c("STEP"))).div_ceil(c("LS")) + 1;
                slabs * (1 + c("LS") * (1 + c("WIDEST").div_ceil(c("TAPS")))) + 2 * c("WORDS").div_ceil(wg) + 4
            }
            "scale_input_grad" => 2 * c("K").div_ceil(4),
            "cross_entropy_forward" => 2 * c("K") + c("K").div_ceil(4),
            "margin_forward" | "dlr_forward" | "difference_forward" => c("K") + c("K").div_ceil(4),
            // Rounds over the image, halvings of the sums, and those of the random numbers.
            "momentum_step" | "l2_step" | "apgd_step" => 5 * pass(c("LEN")) + 6 * sum,
            "fab_step" => 21 * pass(c("LEN")) + 24 * sum,
            "fab_look" => 2 * pass(c("LEN")) + sum,
            "quantise_l2" => 10 * (c("LEN").div_ceil(wg) + 9),
            // Ten rounds of Philox for each value, twice.
            "ball_start" => 24 * pass(c("LEN")) + 2 * sum,
            "square_start" if c("NORM") == 0 => (c("C") * c("W")).div_ceil(wg) * (c("H") + 11) + 16,
            "square_start" => c("TILES") * (11 + c("C") * (11 + (c("TILE") * c("TILE")).div_ceil(wg))) + 16,
            "square_step" if c("NORM") == 1 => {
                c("C") * (8 * pass(c("H") * c("W")) + 2 * sum + 11) + 3 * (each + sum) + 40
            }
            "square_step" => c("LEN").div_ceil(wg) + 12 * (c("C") / 128 + 1) + 10,
            "batch_norm_forward_sample" | "batch_norm_input_grad_sample" => 2 * c("PIXELS").div_ceil(wg) + 32,
            "batch_norm_forward_batch" | "batch_norm_input_grad_batch" => 2 * MAX_BATCH.div_ceil(wg) + 32,
            "global_avg_pool_forward" => c("IH") * c("IW"),
            "max_pool_forward" | "avg_pool_forward" => c("SIZE") * (1 + c("SIZE")),
            "max_pool_input_grad" | "avg_pool_input_grad" => c("COVER") * (1 + c("COVER")),
            "shared_sum" => c("MOST"),
            "probe_fma" => c("ROUNDS"),
            _ => 10,
        }
    }
}
