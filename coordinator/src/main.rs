//! `plumb`.

fn main() -> std::process::ExitCode {
    plumb_coordinator::cli::main()
}
