//! `signstep bench steps`, for cargo: `cargo bench --bench attack [-- --network resnet20 --batch 64 …]`.

fn main() -> std::process::ExitCode {
    signstep::cli::bench("steps")
}
