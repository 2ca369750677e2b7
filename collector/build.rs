//! What Cargo cannot see by itself: migrations, which a macro embeds, and of which commit a bundle is.

fn main() {
    // A new file in `sql/` has to be reason enough to build.
    println!("cargo:rerun-if-changed=../sql");
    // Given by who makes a bundle. It is not looked for here, or each commit would compile the collector anew.
    println!("cargo:rerun-if-env-changed=COLLECTOR_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    match std::env::var("COLLECTOR_COMMIT") {
        Ok(commit) if !commit.is_empty() => println!("cargo:rustc-env=COLLECTOR_VERSION={version} ({commit})"),
        _ => println!("cargo:rustc-env=COLLECTOR_VERSION={version}"),
    }
}
