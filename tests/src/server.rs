//! A real `millstream serve`, to be used, killed and started again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use millstream_client::Client;
use tokio::net::TcpSocket;

/// A running server process. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    data: PathBuf,
    /// Beside those that every server gets.
    arguments: Vec<String>,
    /// `127.0.0.1:port` of gRPC.
    pub grpc: String,
    /// `127.0.0.1:port` of HTTP.
    pub http: String,
}

/// The `millstream` program of this build.
///
/// # Panics
/// Where it was not built.
pub fn millstream() -> PathBuf {
    let path = crate::target_dir().join("millstream");
    assert!(
        path.exists(),
        "{} is not there: `cargo xtask test` builds it, or `cargo build --bin millstream`",
        path.display()
    );
    path
}

impl Server {
    /// Starts a server on `data`, on free ports, and waits until it is ready.
    ///
    /// # Panics
    /// Where it does not start: its error is on stderr.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    /// As [`Server::start`], with more arguments.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start_with(data: &Path, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", data, arguments)
    }

    fn start_at(grpc: &str, data: &Path, arguments: &[&str]) -> Self {
        let log = std::env::var("MILLSTREAM_TEST_LOG").unwrap_or_else(|_| "error".into());
        let mut child = Command::new(millstream())
            .args(["serve", "--grpc", grpc, "--http", "127.0.0.1:0", "--log", &log, "--data"])
            .arg(data)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("the server prints where it listens");
        let address = |name: &str| {
            let at =
                line.find(name).unwrap_or_else(|| panic!("the server did not start, it said {line:?}")) + name.len();
            line[at..].split([',', '\n']).next().unwrap_or_default().trim().to_owned()
        };
        Self {
            grpc: address("gRPC "),
            http: address("HTTP "),
            data: data.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            child,
        }
    }

    /// A client of it.
    ///
    /// # Panics
    /// Never: the address is one.
    pub fn client(&self) -> Client {
        Client::new(&self.grpc).expect("the address is one")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory, in bytes.
    ///
    /// # Panics
    /// Where it is gone.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it is running");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        1024 * resident.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).expect("a number of KB")
    }

    /// The page of its metrics.
    ///
    /// # Panics
    /// Where it does not answer.
    pub fn metrics(&self) -> String {
        page(&self.http, "/metrics").1
    }

    /// Kills it as the kernel would: no warning, nothing written.
    ///
    /// # Panics
    /// Where it can't be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Asks it to stop with SIGTERM, and waits.
    ///
    /// # Panics
    /// Where that can't be done.
    pub fn terminate(&mut self) -> ExitStatus {
        let sent = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("it ends")
    }

    /// Whether it still runs: nobody but us is to end it.
    ///
    /// # Panics
    /// Where that can't be asked.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// Starts another one on the same data and with the same arguments, after [`Server::kill`] or
    /// [`Server::terminate`].
    ///
    /// # Panics
    /// Where it does not start.
    pub fn restart(&mut self) {
        self.restart_at("127.0.0.1:0");
    }

    fn restart_at(&mut self, grpc: &str) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let server = Self::start_at(grpc, &self.data, &arguments);
        *self = server;
    }

    /// As [`Server::restart`], and gRPC listens where it did: clients find it again.
    ///
    /// # Panics
    /// Where the address does not come free, or it does not start.
    pub fn restart_in_place(&mut self) {
        let address: SocketAddr = self.grpc.parse().expect("it printed an address");
        wait_until_free(address);
        self.restart_at(&address.to_string());
    }

    /// Runs the `millstream` program against it.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with_input(arguments, "")
    }

    /// Runs the `millstream` program against it, with `input` on stdin.
    ///
    /// # Panics
    /// Where the program can't be run.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        run(Command::new(millstream()).env("MILLSTREAM_SERVER", &self.grpc).args(arguments), input)
    }
}

/// A start on `data` that is killed before it comes far.
///
/// # Panics
/// A page over HTTP: status and body.
///
/// # Panics
/// Where nobody answers.
pub fn page(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer}")), body.to_owned())
}

/// Where the program can't be run, or not be killed.
pub fn start_and_kill(data: &Path, arguments: &[&str], after: Duration) {
    let mut child = Command::new(millstream())
        .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "error", "--data"])
        .arg(data)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program runs");
    std::thread::sleep(after);
    child.kill().expect("a child can be killed");
    child.wait().expect("a killed child ends");
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Some connection may have been given the port while nobody listened there. Binds without listening:
/// no client must take this for the server.
fn wait_until_free(address: SocketAddr) {
    let free = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)
    };
    let limit = Instant::now() + Duration::from_secs(120);
    while let Err(error) = free() {
        assert!(Instant::now() < limit, "{address} is not free within two minutes: {error}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// stdout.
    pub out: String,
    /// stderr.
    pub err: String,
    /// The exit code.
    pub code: Option<i32>,
}

impl Ran {
    /// stdout of a program that must have succeeded.
    ///
    /// # Panics
    /// Where it did not.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "out: {}\nerr: {}", self.out, self.err);
        self.out
    }
}

/// Runs a program to its end.
///
/// # Panics
/// Where it can't be run.
pub fn run(command: &mut Command, input: &str) -> Ran {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program runs");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A program that does not read its input closes the pipe.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().expect("the program ends");
    writer.join().expect("the writer ends");
    Ran {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
    }
}
