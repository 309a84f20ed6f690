//! The program: arguments in, exit code out. Everything is in the library's `cli`.

fn main() -> std::process::ExitCode {
    signstep::cli::main()
}
