//! A real `millstream serve` process that tests use, kill and restart.

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
    program: PathBuf,
    data: PathBuf,
    /// Arguments in addition to those of every server.
    arguments: Vec<String>,
    /// `127.0.0.1:port` of the gRPC listener.
    pub grpc: String,
    /// `127.0.0.1:port` of the HTTP listener.
    pub http: String,
    /// `127.0.0.1:port` of the listener for Kafka's protocol, if there is one.
    kafka: Option<String>,
}

/// Returns the path of this build's `millstream` program.
///
/// # Panics
/// Panics if it was not built.
pub fn millstream() -> PathBuf {
    let path = crate::target_dir().join("millstream");
    assert!(
        path.exists(),
        "{} does not exist: build it with `cargo xtask test` or `cargo build --bin millstream`",
        path.display()
    );
    path
}

impl Server {
    /// Starts a server on `data` with free ports, and waits until it is ready.
    ///
    /// # Panics
    /// Panics if the server does not start. Its error is on stderr.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    /// Like [`Server::start`], with more arguments.
    ///
    /// # Panics
    /// Panics if the server does not start.
    pub fn start_with(data: &Path, arguments: &[&str]) -> Self {
        Self::start_at(&millstream(), "127.0.0.1:0", data, arguments)
    }

    /// Like [`Server::start_with`], with a `millstream` program of another build.
    ///
    /// # Panics
    /// Panics if the server does not start.
    pub fn start_program(program: &Path, data: &Path, arguments: &[&str]) -> Self {
        Self::start_at(program, "127.0.0.1:0", data, arguments)
    }

    fn start_at(program: &Path, grpc: &str, data: &Path, arguments: &[&str]) -> Self {
        let log = std::env::var("MILLSTREAM_TEST_LOG").unwrap_or_else(|_| "error".into());
        // Clients of Kafka are served where a test says so. Programs of other builds may not know the option.
        let is_said = arguments.contains(&"--kafka-address") || program != millstream();
        let kafka: &[&str] = if is_said { &[] } else { &["--kafka-address", "none"] };
        let mut child = Command::new(program)
            .args(["serve", "--grpc", grpc, "--http", "127.0.0.1:0", "--log", &log, "--data"])
            .arg(data)
            .args(kafka)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("the server prints its addresses");
        let address = |name: &str| {
            let at = line.find(name).unwrap_or_else(|| panic!("the server did not start, its first line was {line:?}"))
                + name.len();
            line[at..].split([',', '\n']).next().unwrap_or_default().trim().to_owned()
        };
        Self {
            grpc: address("gRPC "),
            http: address("HTTP "),
            kafka: line.contains("Kafka ").then(|| address("Kafka ")),
            program: program.to_owned(),
            data: data.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            child,
        }
    }

    /// Returns a client of this server.
    ///
    /// # Panics
    /// Never, because the address is valid.
    pub fn client(&self) -> Client {
        Client::new(&self.grpc).expect("the address is valid")
    }

    /// Returns the address for clients that speak Kafka's protocol.
    ///
    /// # Panics
    /// Panics if the server was started without `--kafka-address`.
    pub fn kafka(&self) -> &str {
        self.kafka.as_deref().expect("the server serves Kafka's protocol")
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the resident memory, in bytes.
    ///
    /// # Panics
    /// Panics if the process has ended.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server is running");
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("the status of a process contains VmRSS");
        1024 * resident
            .split_whitespace()
            .next()
            .and_then(|kb| kb.parse::<u64>().ok())
            .expect("VmRSS is a number of KB")
    }

    /// Returns the page of the server's metrics.
    ///
    /// # Panics
    /// Panics if the server does not answer.
    pub fn metrics(&self) -> String {
        page(&self.http, "/metrics").1
    }

    /// Kills the server as the kernel would, without a warning and without a chance to write anything.
    ///
    /// # Panics
    /// Panics if the server cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("the child process can be killed");
        self.child.wait().expect("a killed child process ends");
    }

    /// Asks the server to stop with SIGTERM, and waits until it ends.
    ///
    /// # Panics
    /// Panics if this fails.
    pub fn terminate(&mut self) -> ExitStatus {
        let sent = Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status()
            .expect("the program `kill` can be run");
        assert!(sent.success());
        self.child.wait().expect("the server ends")
    }

    /// Returns whether the process still runs. Only the test itself may end it.
    ///
    /// # Panics
    /// Panics if the process's status cannot be read.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the status of the child process can be read").is_none()
    }

    /// Starts another server on the same data with the same arguments, after [`Server::kill`] or [`Server::terminate`].
    ///
    /// # Panics
    /// Panics if the server does not start.
    pub fn restart(&mut self) {
        self.restart_at("127.0.0.1:0");
    }

    fn restart_at(&mut self, grpc: &str) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let server = Self::start_at(&self.program, grpc, &self.data, &arguments);
        *self = server;
    }

    /// Like [`Server::restart`], but gRPC listens on the same address, so that clients can reconnect.
    ///
    /// # Panics
    /// Panics if the address does not become free or the server does not start.
    pub fn restart_in_place(&mut self) {
        let address: SocketAddr = self.grpc.parse().expect("the server printed a valid address");
        wait_until_free(address);
        self.restart_at(&address.to_string());
    }

    /// Runs the `millstream` program against this server.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with_input(arguments, "")
    }

    /// Runs the `millstream` program against this server, with `input` on stdin.
    ///
    /// # Panics
    /// Panics if the program cannot be run.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        run(Command::new(millstream()).env("MILLSTREAM_SERVER", &self.grpc).args(arguments), input)
    }
}

/// Fetches a page over HTTP, and returns its status and body.
///
/// # Panics
/// Panics if the server does not answer.
pub fn page(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the listener accepts connections");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("the request can be written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer can be read");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer}")), body.to_owned())
}

/// Starts a server on `data`, and kills it after the time `after`, which is usually before it is ready.
///
/// # Panics
/// Panics if the program cannot be run or killed.
pub fn start_and_kill(data: &Path, arguments: &[&str], after: Duration) {
    let mut child = Command::new(millstream())
        .args([
            "serve",
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--kafka-address",
            "none",
            "--log",
            "error",
            "--data",
        ])
        .arg(data)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program can be run");
    std::thread::sleep(after);
    child.kill().expect("the child process can be killed");
    child.wait().expect("a killed child process ends");
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the port is free, because another connection may have been given it while no server listened there.
/// Binds without listening, so that no client takes this for the server.
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

/// Output and exit code of a program.
#[derive(Debug)]
pub struct Ran {
    /// Text on stdout.
    pub out: String,
    /// Text on stderr.
    pub err: String,
    /// The exit code.
    pub code: Option<i32>,
}

impl Ran {
    /// Returns stdout of a program that must have succeeded.
    ///
    /// # Panics
    /// Panics if the program failed.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "out: {}\nerr: {}", self.out, self.err);
        self.out
    }
}

/// Runs a program until it ends.
///
/// # Panics
/// Panics if the program cannot be run.
pub fn run(command: &mut Command, input: &str) -> Ran {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program can be run");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A program that does not read its input closes the pipe.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().expect("the program ends");
    writer.join().expect("the writer thread ends without a panic");
    Ran {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
    }
}
