//! The server of a scenario.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::proxy::Proxy;

const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A server on a folder of its own. It is killed when dropped.
pub(super) struct Server {
    /// Where clients connect to: the server itself, or a proxy before it.
    pub(super) kafka: String,
    own: String,
    proxy: Option<Proxy>,
    program: PathBuf,
    folder: PathBuf,
    arguments: &'static [&'static str],
    process: Child,
}

impl Server {
    /// Starts a server on an empty folder. Clients reach it through a proxy if `behind_proxy` is true.
    pub(super) fn start(root: &Path, behind_proxy: bool, arguments: &'static [&'static str]) -> Result<Self> {
        let folder = root.join("target/interop/data");
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("cannot clean up"),
            _ => {}
        }
        let own = free_address()?;
        let proxy = behind_proxy.then(|| Proxy::start(own.clone())).transpose()?;
        let kafka = proxy.as_ref().map_or_else(|| own.clone(), |proxy| proxy.address.clone());
        let program = root.join("target/debug/millstream");
        let process = spawn(&program, &folder, &own, &kafka, arguments)?;
        let server = Self { kafka, own, proxy, program, folder, arguments, process };
        server.wait()?;
        Ok(server)
    }

    /// Kills the server, and starts it again on the same address.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.process = spawn(&self.program, &self.folder, &self.own, &self.kafka, self.arguments)?;
        self.wait()
    }

    /// Cuts all connections.
    pub(super) fn cut(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.cut();
        }
    }

    fn stop(&mut self) -> Result<()> {
        self.process.kill().context("cannot kill the server")?;
        self.process.wait().context("cannot wait for the server").map(drop)
    }

    fn wait(&self) -> Result<()> {
        let limit = Instant::now() + STARTS_WITHIN;
        while TcpStream::connect(&self.own).is_err() {
            if Instant::now() > limit {
                bail!("the server does not listen on {} within a minute", self.own);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.stop();
    }
}

fn spawn(program: &Path, folder: &Path, own: &str, advertised: &str, arguments: &[&str]) -> Result<Child> {
    Command::new(program)
        .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "warn"])
        .args(["--kafka-address", &format!("{own}={advertised}"), "--data"])
        .arg(folder)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the server")
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener.local_addr().context("a listener has no address")?.to_string())
}
