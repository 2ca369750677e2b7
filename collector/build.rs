//! Migrations are embedded by a macro, which Cargo cannot see through: a new file in `sql/` has to be reason enough to build.

fn main() {
    println!("cargo:rerun-if-changed=../sql");
}
