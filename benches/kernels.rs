//! `signstep bench kernels`, for cargo: `cargo bench --bench kernels [-- --shape 'conv3x3s1-*' …]`.

fn main() -> std::process::ExitCode {
    signstep::cli::bench("kernels")
}
