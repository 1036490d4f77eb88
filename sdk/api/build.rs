//! Compiles the gRPC definitions in `sdk/proto` with protox, so that protoc does not have to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../proto";
    let files = ["admin", "error", "record", "topics", "log", "groups", "modules", "pipelines", "state"]
        .map(|name| format!("millstream/v1/{name}.proto"));
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile(&files, [root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("millstream.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".millstream.v1").compile_fds(descriptors)?;
    Ok(())
}
