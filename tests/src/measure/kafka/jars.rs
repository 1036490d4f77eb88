//! Kafka's jars, and running the programs in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The version of Apache Kafka.
pub const VERSION: &str = "4.4.0";

/// Minimum Java version of the broker.
const JAVA_MIN: u32 = 17;

/// The file that records which jars the folder contains. It is written last.
const COMPLETE: &str = "COMPLETE";

/// A folder with Kafka's jars.
#[derive(Clone, Debug)]
pub struct Jars {
    folder: PathBuf,
}

impl Jars {
    /// Returns the jars in `folder`. Maven downloads them the first time.
    ///
    /// # Errors
    /// Returns the reason why Kafka is not available, such as no Java, no Maven or no network.
    pub fn prepare(folder: &Path) -> Result<Self> {
        check_java()?;
        let jars = Self { folder: folder.to_owned() };
        let complete = folder.join(COMPLETE);
        if std::fs::read_to_string(&complete).is_ok_and(|jars| jars == pom_xml()) {
            return Ok(jars);
        }
        if folder.exists() {
            // The folder has other jars, or is the result of an interrupted download.
            std::fs::remove_dir_all(folder).with_context(|| format!("can't remove {}", folder.display()))?;
        }
        std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        download(folder)?;
        std::fs::write(&complete, pom_xml()).with_context(|| format!("can't write {}", complete.display()))?;
        Ok(jars)
    }

    /// Returns a `java` command with the jars on its class path.
    pub fn java(&self) -> Command {
        let mut java = Command::new("java");
        java.arg("-cp").arg(self.folder.join("lib/*"));
        java
    }

    /// Runs a program from the jars until it ends, and returns its output.
    ///
    /// # Errors
    /// Returns an error with the last lines of output if the program fails.
    pub fn run(&self, class: &str, arguments: &[&str]) -> Result<String> {
        // `class` may also be the path of a source file, which Java compiles.
        let output = self.java().arg(class).args(arguments).output().context("can't run java")?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let err = String::from_utf8_lossy(&output.stderr);
            bail!("{class} failed ({}): {}", output.status, last_lines(&format!("{out}\n{err}")));
        }
        Ok(out)
    }

    /// Parses the major version of Java from the output of `java -version`: `openjdk version "17.0.15" 2025-04-15` is
    /// 17, and `"1.8.0_292"` is 8.
    pub fn java_version(said: &str) -> Option<u32> {
        let mut parts = said.split('"').nth(1)?.split(['.', '-', '+', '_']);
        let first = parts.next()?.parse().ok()?;
        if first == 1 { parts.next()?.parse().ok() } else { Some(first) }
    }
}

/// Returns the last lines of a program's output, joined into one line.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

fn check_java() -> Result<()> {
    let output = Command::new("java").arg("-version").output().context("Java is not there")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let version = Jars::java_version(&said).with_context(|| format!("`java -version` said {:?}", last_lines(&said)))?;
    if version < JAVA_MIN {
        bail!("Java {version} is too old: Apache Kafka {VERSION} needs Java {JAVA_MIN}");
    }
    Ok(())
}

fn download(folder: &Path) -> Result<()> {
    let pom = folder.join("pom.xml");
    std::fs::write(&pom, pom_xml()).with_context(|| format!("can't write {}", pom.display()))?;
    eprintln!("Apache Kafka {VERSION}: Maven brings its jars to {}", folder.display());
    let mut maven = Command::new("mvn");
    maven.args(["--batch-mode", "--quiet", "--file"]).arg(&pom).arg("dependency:copy-dependencies");
    maven.arg(format!("-DoutputDirectory={}", folder.join("lib").display()));
    let output = maven.output().context("Maven is not there")?;
    if !output.status.success() {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // The first error is the cause. The later lines are advice.
        let error = said.lines().find(|line| line.contains("ERROR")).map_or_else(|| last_lines(&said), str::to_owned);
        bail!("Maven can't bring the jars of Apache Kafka {VERSION}: {}", error.trim());
    }
    Ok(())
}

/// Returns a POM with the broker, its tools, Kafka Streams, and a logger that reports why a broker ends.
fn pom_xml() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>\
             </dependency>\n"
        )
    };
    [
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  <modelVersion>4.0.0</modelVersion>\n",
        "  <groupId>millstream</groupId><artifactId>kafka-yardstick</artifactId><version>1</version>\n  <dependencies>\n",
        &dependency("org.apache.kafka", "kafka_2.13", VERSION),
        &dependency("org.apache.kafka", "kafka-tools", VERSION),
        &dependency("org.apache.kafka", "kafka-streams", VERSION),
        // Kafka logs through slf4j 1.7.
        &dependency("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),
        "  </dependencies>\n</project>\n",
    ]
    .concat()
}
