//! Kafka's jars, and the programs in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Which Apache Kafka.
pub const VERSION: &str = "4.4.0";

/// The broker needs this Java or a newer one.
const JAVA_MIN: u32 = 17;

/// The file that says which jars the folder has: it is written last.
const COMPLETE: &str = "COMPLETE";

/// Kafka's jars in a folder.
#[derive(Clone, Debug)]
pub struct Jars {
    folder: PathBuf,
}

impl Jars {
    /// The jars in `folder`; the first time Maven brings them there.
    ///
    /// # Errors
    /// Why there is no Kafka: no Java, no Maven, no network.
    pub fn prepare(folder: &Path) -> Result<Self> {
        check_java()?;
        let jars = Self { folder: folder.to_owned() };
        let complete = folder.join(COMPLETE);
        if std::fs::read_to_string(&complete).is_ok_and(|jars| jars == pom_xml()) {
            return Ok(jars);
        }
        if folder.exists() {
            // Of other jars, or of a download that was cut off.
            std::fs::remove_dir_all(folder).with_context(|| format!("can't remove {}", folder.display()))?;
        }
        std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        download(folder)?;
        std::fs::write(&complete, pom_xml()).with_context(|| format!("can't write {}", complete.display()))?;
        Ok(jars)
    }

    /// `java`, with the jars on its class path.
    pub fn java(&self) -> Command {
        let mut java = Command::new("java");
        java.arg("-cp").arg(self.folder.join("lib/*"));
        java
    }

    /// Runs a program in the jars to its end; returns what it printed.
    ///
    /// # Errors
    /// Where it fails, with the last lines that it printed.
    pub fn run(&self, class: &str, arguments: &[&str]) -> Result<String> {
        // The path of a source file is a class too: Java compiles it.
        let output = self.java().arg(class).args(arguments).output().context("can't run java")?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let err = String::from_utf8_lossy(&output.stderr);
            bail!("{class} failed ({}): {}", output.status, last_lines(&format!("{out}\n{err}")));
        }
        Ok(out)
    }

    /// Which Java it is, by what `java -version` printed: `openjdk version "17.0.15" 2025-04-15` is 17; `"1.8.0_292"` is 8.
    pub fn java_version(said: &str) -> Option<u32> {
        let mut parts = said.split('"').nth(1)?.split(['.', '-', '+', '_']);
        let first = parts.next()?.parse().ok()?;
        if first == 1 { parts.next()?.parse().ok() } else { Some(first) }
    }
}

/// The last lines of what a program printed, in one line.
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
        // The first error is the cause; what follows is advice.
        let error = said.lines().find(|line| line.contains("ERROR")).map_or_else(|| last_lines(&said), str::to_owned);
        bail!("Maven can't bring the jars of Apache Kafka {VERSION}: {}", error.trim());
    }
    Ok(())
}

/// Broker, tools, Kafka Streams, and a logger that says why a broker ends.
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
        // Kafka logs by slf4j 1.7.
        &dependency("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),
        "  </dependencies>\n</project>\n",
    ]
    .concat()
}
