//! Parses the access log of a web server in Combined Log Format into JSON. A malformed line fails with the column of
//! the error.

use millstream::prelude::*;

#[derive(Serialize)]
struct Access<'a> {
    client: &'a str,
    user: Option<&'a str>,
    time: &'a str,
    method: &'a str,
    path: &'a str,
    protocol: &'a str,
    status: u16,
    bytes: Option<u64>,
    referer: Option<&'a str>,
    agent: Option<&'a str>,
}

#[millstream::map]
pub fn parse_log(record: &Record, out: &mut Output) -> Result<()> {
    let mut line = Line { all: record.value_str()?.trim_end(), at: 0 };
    let client = line.until("client address", " ")?;
    line.until("identity", " ")?;
    let user = line.until("user", " [")?;
    let time = line.until("time", "] \"")?;
    let mut request = line.until("request", "\" ")?.split(' ');
    let (Some(method), Some(path), Some(protocol), None) =
        (request.next(), request.next(), request.next(), request.next())
    else {
        bail!("the request is not METHOD PATH PROTOCOL: {:?}", line.all);
    };
    let status = line.until("status", " ")?;
    let Ok(status) = status.parse() else { bail!("the status {status:?} is not a number") };
    // The Common Log Format ends here.
    let bytes = line.until("size", " \"").or_else(|_| line.rest("size"))?;
    let bytes = match bytes {
        "-" => None,
        digits => Some(digits.parse().map_err(|_| Error::new(format!("the size {digits:?} is not a number")))?),
    };
    let (mut referer, mut agent) = (None, None);
    if !line.is_done() {
        referer = dash(line.until("referer", "\" \"")?);
        agent = dash(line.until("user agent", "\"")?);
    }
    out.emit_json(&Access { client, user: dash(user), time, method, path, protocol, status, bytes, referer, agent })
}

fn dash(field: &str) -> Option<&str> {
    (field != "-").then_some(field)
}

/// A line that is parsed from left to right.
struct Line<'a> {
    all: &'a str,
    at: usize,
}

impl<'a> Line<'a> {
    fn until(&mut self, field: &str, end: &str) -> Result<&'a str> {
        let rest = &self.all[self.at..];
        let Some(len) = rest.find(end) else {
            let column = self.at + 1;
            bail!("not Combined Log Format: no {field} at column {column}, {end:?} is missing after {rest:?}");
        };
        self.at += len + end.len();
        Ok(&rest[..len])
    }

    fn rest(&mut self, field: &str) -> Result<&'a str> {
        let rest = &self.all[self.at..];
        if rest.is_empty() {
            bail!("not Combined Log Format: the line ends before the {field}");
        }
        self.at = self.all.len();
        Ok(rest)
    }

    fn is_done(&self) -> bool {
        self.at >= self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<String> {
        let record = Record::of(line);
        Ok(Output::collect(&record, |out| parse_log(&record, out))?[0].value_str().to_owned())
    }

    #[test]
    fn a_combined_line_becomes_json() {
        let line = r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /a.gif HTTP/1.0" 200 2326 "http://x/" "Mozilla/4.08 [en]""#;
        assert_eq!(
            parse(line).unwrap(),
            r#"{"client":"127.0.0.1","user":"frank","time":"10/Oct/2000:13:55:36 -0700","method":"GET","path":"/a.gif","protocol":"HTTP/1.0","status":200,"bytes":2326,"referer":"http://x/","agent":"Mozilla/4.08 [en]"}"#
        );
    }

    #[test]
    fn a_common_line_is_taken_too() {
        let json = parse(r#"::1 - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.1" 304 -"#).unwrap();
        assert!(json.contains(r#""user":null"#) && json.contains(r#""bytes":null,"referer":null"#), "{json}");
    }

    #[test]
    fn a_broken_line_says_where() {
        let error = parse("127.0.0.1 - frank 10/Oct/2000").unwrap_err().to_string();
        assert!(error.contains("no user at column 13"), "{error}");
        let error = parse(r#"a - b [t] "GET / HTTP/1.1" abc 1 "-" "-""#).unwrap_err().to_string();
        assert_eq!(error, "the status \"abc\" is not a number");
        assert!(parse("").unwrap_err().to_string().contains("client address at column 1"));
    }
}
