//! Settings: the command line, the environment and a file, read and checked once.
//!
//! Every setting has a flag (`--body-limit`), an environment variable (`LSQD_BODY_LIMIT`) and a key in the file (`body-limit` or
//! `body_limit`). A flag wins over the variable, the variable over the file, the file over the default. All faults are reported together,
//! each with the place that the value came from. This is the only module that reads the environment (but for `planted`, in debug builds);
//! what the settings do is written where they are used.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// The file that is read when none is named, if it is there.
const USUAL_FILE: &str = "lsqd.toml";
/// Past this, looking takes more than it can save.
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(10);

/// An empty database takes some of it.
const SMALLEST_STORAGE: u64 = 1 << 20;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The files that connections are encrypted with, both in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and behind it those that lead from it to one that clients know.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Everything the server is told when it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it speaks gRPC, if it does.
    pub grpc_listen: Option<SocketAddr>,
    /// Where health and metrics are answered by themselves, if they are.
    pub metrics_listen: Option<SocketAddr>,
    /// What every connection is encrypted with; without it none is.
    pub tls: Option<TlsFiles>,
    /// Names that the server is reached by, beside addresses, `localhost` and names without a dot.
    pub hosts: Vec<String>,
    /// The model behind addresses that name none.
    pub default_model: Option<String>,
    /// The database's file.
    pub database: PathBuf,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written.
    pub log_level: String,
    /// Whether to serve everybody who can reach an address that is not loopback, while no key was made.
    pub insecure: bool,
    /// Origins whose pages may read replies; `*` is any.
    pub cors_origins: Vec<String>,
    /// Threads that serve connections.
    pub serving_threads: usize,
    /// How long such a thread looks for the next request before it sleeps; zero is not at all.
    pub busy_poll: Duration,
    /// Fits that are computed at the same time.
    pub compute_threads: usize,
    /// Reading connections to the database.
    pub readers: u32,
    /// Fits that may be waiting or running.
    pub fit_queue: usize,
    /// Bytes of a request body that is held in memory.
    pub body_limit: usize,
    /// Bytes of an upload; 0 is no limit.
    pub upload_limit: u64,
    /// Bytes of a packed body as it comes; 0 is no limit.
    pub packed_limit: u64,
    /// Bytes that each byte of a packed body may become; 0 is no limit.
    pub unpack_ratio: u64,
    /// How long a remembered prediction waits for its label.
    pub remember_ttl: Duration,
    /// Whether what versions are asked to predict is watched.
    pub watch_inputs: bool,
    /// Requests to predict that are answered at the same time; `None` is as many as can be answered soon.
    pub concurrent_predictions: Option<usize>,
    /// Updates and labels that are under way at the same time.
    pub concurrent_updates: usize,
    /// Long bodies of both that arrive at the same time, and streams.
    pub concurrent_streams: usize,
    /// Requests that fit, or wait for a fit, at the same time.
    pub concurrent_fits: usize,
    /// Uploads at the same time.
    pub concurrent_uploads: usize,
    /// What each key may send: requests a second, and requests at once.
    pub key_rate: Option<(u32, u32)>,
    /// Bytes of the database; 0 is no limit.
    pub storage_limit: u64,
    /// Connections that are open at the same time; past that, new ones wait.
    pub max_connections: usize,
    /// From the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// Without a byte of a body that is waited for.
    pub body_timeout: Duration,
    /// Without a byte of an answer taken.
    pub answer_timeout: Duration,
    /// Bytes a second below which a body or an answer uses up its time; 0 is any.
    pub min_body_rate: u64,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// From the signal to stop until connections are cut.
    pub drain_timeout: Duration,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run the server.
    Serve(Box<Config>),
    /// Ask a running server whether it is ready.
    Health {
        /// `host:port`.
        authority: String,
        /// From the first `/` on.
        path: String,
        /// The file of the certificate that it has to show, if it is asked over TLS.
        certificate: Option<PathBuf>,
    },
    /// Write a backup of a database, whether its server runs or not.
    Backup {
        /// The database's file.
        database: PathBuf,
        /// The file to be written.
        to: PathBuf,
        /// Whether it may be there already.
        force: bool,
    },
    /// Put a backup in the place of a database whose server does not run.
    Restore {
        /// The backup.
        from: PathBuf,
        /// The database's file.
        database: PathBuf,
        /// Whether it may be there already.
        force: bool,
    },
    /// Look whether a database is whole.
    Check {
        /// The database's file.
        database: PathBuf,
        /// Whether to mend what can be mended.
        repair: bool,
        /// Whether to report as JSON.
        json: bool,
    },
    /// Do something with the keys of a database.
    Key {
        /// Its file.
        database: PathBuf,
        /// What.
        command: KeyCommand,
    },
}

/// What is to be done with keys.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum KeyCommand {
    /// Make a key; it is written to stdout, this once
    Create {
        /// What may be done with it: read, predict, update, write, admin; several with commas between them
        #[arg(long)]
        scopes: String,
        /// Models that it shows, such as 'sales-*'; may be given several times [default: all]
        #[arg(long, value_name = "PATTERN")]
        models: Vec<String>,
        /// Datasets that it shows, in the same way [default: all]
        #[arg(long, value_name = "PATTERN")]
        datasets: Vec<String>,
        /// What people call it
        #[arg(long)]
        name: Option<String>,
        /// When it ends: a time from now, such as 90d, or a moment, such as 2030-01-31T12:00:00Z [default: never]
        #[arg(long, value_name = "WHEN")]
        expires: Option<String>,
    },
    /// List the keys, without their secrets
    List,
    /// Revoke a key, within a second also in a running server
    Revoke {
        /// The part of it between `lsqd_` and the dot
        id: String,
    },
}

/// Why the program does not start: one line for each fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(Vec<String>);

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.0.iter().enumerate() {
            write!(formatter, "{}error: {fault}", if number == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl From<String> for Refusal {
    fn from(fault: String) -> Self {
        Self(vec![fault])
    }
}

/// A least-squares prediction service: upload, fit, predict with an honest interval, and learn row by row.
#[derive(Debug, Parser)]
#[command(
    name = "lsqd",
    version,
    after_help = "Each flag has a key of the same name in the file. Flags win over the environment, that over the file."
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    flags: Flags,
    /// File of settings (TOML) [env: LSQD_CONFIG] [default: ./lsqd.toml if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the server (what happens without a command)
    Serve,
    /// Ask a running server whether it is ready: exit code 0 if it is, else 1
    Health {
        /// What to ask [default: /readyz at the address of --listen]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Write a backup of the database, whether its server runs or not
    Backup {
        /// File to write
        #[arg(value_name = "BACKUP")]
        to: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
    },
    /// Put a backup in the place of the database, whose server must not run
    Restore {
        /// File to restore
        #[arg(value_name = "BACKUP")]
        from: PathBuf,
        /// Replace the database if there is one
        #[arg(long)]
        force: bool,
    },
    /// Look whether everything in the database is as it was written: exit code 0 if it is, else 1
    Check {
        /// Mend what can be mended; the server must not run
        #[arg(long)]
        repair: bool,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make, list or revoke keys, beside a running server or without one
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

/// The one table of settings: name, environment variable, what stands for its value in the help, default, help.
macro_rules! settings {
    ($($(#[$attribute:meta])* $name:ident $variable:literal $placeholder:literal $default:literal $help:literal;)*) => {
        /// The settings as they are written on the command line, not yet checked.
        #[derive(Debug, Default, Args)]
        struct Flags {
            $(
                #[arg(
                    long, global = true, value_name = $placeholder,
                    help = concat!($help, " [env: ", $variable, "] [default: ", $default, "]")
                )]
                $(#[$attribute])*
                $name: Option<String>,
            )*
        }

        /// A value of each setting, as text, with its source.
        struct Texts { $($name: Text),* }

        /// Name, environment variable and default of each setting.
        const SETTINGS: &[(&str, &str, &str)] = &[$((stringify!($name), $variable, $default)),*];

        impl Texts {
            fn gather(flags: Flags, environment: &dyn Fn(&str) -> Option<OsString>, file: &File) -> Self {
                Self { $($name: Text::find(stringify!($name), $variable, $default, flags.$name, environment, file)),* }
            }
        }
    };
}

settings! {
    listen          "LSQD_LISTEN"          "ADDRESS"  "127.0.0.1:8080" "Address and port to listen on";
    grpc_listen     "LSQD_GRPC_LISTEN"     "ADDRESS"  "off"            "Address and port for gRPC (Open Inference Protocol); off is none";
    metrics_listen  "LSQD_METRICS_LISTEN"  "ADDRESS"  "off"            "Address and port for health and metrics alone, answered also when all else is too much; off is none";
    tls_certificate "LSQD_TLS_CERTIFICATE" "FILE"     ""               "Certificate that connections are encrypted with, and its chain (PEM); read again when it changes; none is plain HTTP";
    tls_key         "LSQD_TLS_KEY"         "FILE"     ""               "Private key of that certificate (PEM)";
    hosts           "LSQD_HOSTS"           "NAMES"    ""               "Names with a dot that the server is reached by, with commas between them; others are refused while no key was made";
    default_model   "LSQD_DEFAULT_MODEL"   "NAME"     ""               "Model behind /invocations, which names none; empty is the only one there is";
    database        "LSQD_DATABASE"        "FILE"     "./lsqd.db"      "SQLite file that holds everything; made when absent";
    log_format      "LSQD_LOG_FORMAT"      "FORMAT"   "text"           "Log lines as text or json, on stderr";
    log_level       "LSQD_LOG_LEVEL"       "FILTER"   "info"           "What is logged: error, warn, info, debug, trace, or a list such as info,lsqd::http=warn";
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure        "LSQD_INSECURE"        "BOOLEAN"  "false"          "Listen on an address that is not loopback though no key was made, open to everybody who can reach it";
    cors_origins    "LSQD_CORS_ORIGINS"    "ORIGINS"  ""               "Origins whose pages may read replies, with commas between them, or *; none without";
    serving_threads "LSQD_SERVING_THREADS" "COUNT"    "auto"           "Threads that serve connections; auto is one for each core";
    busy_poll       "LSQD_BUSY_POLL"       "DURATION" "50us"           "How long a thread that serves looks for the next request before it sleeps, if nobody else wants its core; 0 for not at all";
    compute_threads "LSQD_COMPUTE_THREADS" "COUNT"    "auto"           "Fits computed at the same time; auto is one for each core";
    readers         "LSQD_READERS"         "COUNT"    "8"              "Reading connections to the database";
    fit_queue       "LSQD_FIT_QUEUE"       "COUNT"    "64"             "Fits that may be waiting or running; past that they are refused";
    body_limit      "LSQD_BODY_LIMIT"      "SIZE"     "64MiB"          "Largest request body that is held in memory";
    upload_limit    "LSQD_UPLOAD_LIMIT"    "SIZE"     "0"              "Largest upload of a dataset, which is streamed; 0 is no limit";
    packed_limit    "LSQD_PACKED_LIMIT"    "SIZE"     "1GiB"           "Largest packed body (gzip, deflate, zstd) as it comes; 0 is no limit";
    unpack_ratio    "LSQD_UNPACK_RATIO"    "COUNT"    "200"            "Most that a packed body may grow, in times its length, past 16 MiB; 0 is no limit";
    remember_ttl    "LSQD_REMEMBER_TTL"    "DURATION" "7d"             "How long a remembered prediction waits for its label";
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    watch_inputs    "LSQD_WATCH_INPUTS"    "BOOLEAN"  "true"           "Compare what is predicted with what was trained on; --watch-inputs=false does not";
    concurrent_predictions "LSQD_CONCURRENT_PREDICTIONS" "COUNT" "auto" "Predictions under way at the same time; auto is 256, and 64 for each serving thread where there is always a queue";
    concurrent_updates "LSQD_CONCURRENT_UPDATES" "COUNT" "1024"        "Updates and labels under way at the same time; past a limit of this kind: 503";
    concurrent_streams "LSQD_CONCURRENT_STREAMS" "COUNT" "256"         "Streams, and predictions and updates of more than 64 KiB, at the same time";
    concurrent_fits "LSQD_CONCURRENT_FITS" "COUNT"    "auto"           "Requests for fits and diagnostics at the same time; auto is twice the fit queue";
    concurrent_uploads "LSQD_CONCURRENT_UPLOADS" "COUNT" "16"          "Uploads at the same time";
    key_rate        "LSQD_KEY_RATE"        "COUNT"    "0"              "Requests a second that each key may send; 0 is no limit";
    key_burst       "LSQD_KEY_BURST"       "COUNT"    "auto"           "Requests that a key may send at once; auto is as many as in a second";
    storage_limit   "LSQD_STORAGE_LIMIT"   "SIZE"     "0"              "Largest size of the database; 0 is no limit";
    max_connections "LSQD_MAX_CONNECTIONS" "COUNT"    "4096"           "Connections open at the same time; past that, new ones wait";
    header_timeout  "LSQD_HEADER_TIMEOUT"  "DURATION" "10s"            "From the first byte of a request to the end of its header; and for a TLS handshake";
    body_timeout    "LSQD_BODY_TIMEOUT"    "DURATION" "30s"            "Longest time without a byte of a body";
    answer_timeout  "LSQD_ANSWER_TIMEOUT"  "DURATION" "10s"            "Longest time without a byte of an answer taken";
    min_body_rate   "LSQD_MIN_BODY_RATE"   "SIZE"     "240"            "Bytes a second below which a body or an answer uses up its time; streams of rows may be slower; 0 is any";
    idle_timeout    "LSQD_IDLE_TIMEOUT"    "DURATION" "75s"            "Longest time between two requests of a connection";
    drain_timeout   "LSQD_DRAIN_TIMEOUT"   "DURATION" "25s"            "How long open requests may take to end after SIGTERM";
}

/// Where a value came from.
#[derive(Debug)]
enum Source {
    Flag,
    Environment,
    File(PathBuf),
    Default,
}

/// A value as it was written.
#[derive(Debug)]
struct Text {
    name: &'static str,
    variable: &'static str,
    value: Result<String, String>,
    source: Source,
}

impl Text {
    fn find(
        name: &'static str,
        variable: &'static str,
        default: &str,
        flag: Option<String>,
        environment: &dyn Fn(&str) -> Option<OsString>,
        file: &File,
    ) -> Self {
        // A variable that is set to nothing is how deployment tools say "not set".
        let (value, source) = if let Some(value) = flag {
            (Ok(value), Source::Flag)
        } else if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
            (value.into_string().map_err(|_| "is not UTF-8".to_owned()), Source::Environment)
        } else if let Some((_, value)) = file.entries.iter().find(|(key, _)| key == name) {
            (value.clone(), Source::File(file.path.clone()))
        } else {
            (Ok(default.to_owned()), Source::Default)
        };
        Self { name, variable, value, source }
    }

    /// The place to look at, for an error.
    fn place(&self) -> String {
        match &self.source {
            Source::Flag => format!("--{}", self.name.replace('_', "-")),
            Source::Environment => format!("the environment variable {}", self.variable),
            Source::File(path) => format!("`{}` in {}", self.name.replace('_', "-"), path.display()),
            Source::Default => format!("the default of --{}", self.name.replace('_', "-")),
        }
    }

    /// The checked value; a fault goes on the list.
    fn check<T>(&self, faults: &mut Vec<String>, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match self.value.as_deref().map_err(Clone::clone).and_then(|value| parse(value.trim())) {
            Ok(value) => Some(value),
            Err(fault) => {
                faults.push(format!("{} {fault}", self.place()));
                None
            }
        }
    }
}

/// The file of settings, its keys in their one spelling.
#[derive(Debug, Default)]
struct File {
    path: PathBuf,
    entries: Vec<(String, Result<String, String>)>,
}

impl File {
    /// Reads the named file, or the usual one if it is there.
    fn read(named: Option<PathBuf>) -> Result<Self, Refusal> {
        let optional = named.is_none();
        let path = named.unwrap_or_else(|| PathBuf::from(USUAL_FILE));
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("the settings in {} cannot be read: {error}", path.display()).into()),
        }
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, Refusal> {
        let table: toml::Table =
            toml::from_str(text).map_err(|error| format!("{} is not TOML: {}", path.display(), error.to_string().trim_end()))?;
        let mut faults = Vec::new();
        let mut entries: Vec<(String, Result<String, String>)> = Vec::new();
        for (key, value) in table {
            let name = key.replace('-', "_");
            if !SETTINGS.iter().any(|(known, ..)| *known == name) {
                let known = SETTINGS.iter().map(|(known, ..)| known.replace('_', "-")).collect::<Vec<_>>().join(", ");
                faults.push(format!("{} has a key `{key}`, which is no setting; the settings are {known}", path.display()));
                continue;
            }
            if entries.iter().any(|(earlier, _)| *earlier == name) {
                faults.push(format!("{} says `{}` twice, once with `-` and once with `_`", path.display(), name.replace('_', "-")));
                continue;
            }
            let value = match value {
                toml::Value::String(text) => Ok(text),
                toml::Value::Integer(number) => Ok(number.to_string()),
                toml::Value::Float(number) => Ok(number.to_string()),
                toml::Value::Boolean(truth) => Ok(truth.to_string()),
                toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                    Err("is neither a text, a number nor a boolean".to_owned())
                }
            };
            entries.push((name, value));
        }
        if faults.is_empty() { Ok(Self { path, entries }) } else { Err(Refusal(faults)) }
    }
}

/// Reads the command line, the environment and the file. Ends the process for `--help`, `--version` (exit code 0) and a command line that
/// is not one (2).
///
/// # Errors
/// A value that cannot be taken, or settings that do not go together.
pub fn read() -> Result<Command, Refusal> {
    let line = CommandLine::try_parse().unwrap_or_else(|error| error.exit());
    resolve(line, &|name| std::env::var_os(name))
}

fn resolve(line: CommandLine, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Command, Refusal> {
    let named = line.config.or_else(|| environment("LSQD_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from));
    // These know no address: only the database matters to them.
    let the_database = |flags: Flags, named: Option<PathBuf>| -> Result<PathBuf, Refusal> {
        let mut faults = Vec::new();
        Texts::gather(flags, environment, &File::read(named)?).database.check(&mut faults, database).ok_or(Refusal(faults))
    };
    match line.verb {
        Some(Verb::Backup { to, force }) => Ok(Command::Backup { database: the_database(line.flags, named)?, to, force }),
        Some(Verb::Restore { from, force }) => Ok(Command::Restore { from, database: the_database(line.flags, named)?, force }),
        Some(Verb::Check { repair, json }) => Ok(Command::Check { database: the_database(line.flags, named)?, repair, json }),
        Some(Verb::Health { url }) => {
            // Only the address matters to the one who asks, and what is shown there: the database may belong to somebody else.
            let texts = Texts::gather(line.flags, environment, &File::read(named)?);
            let mut faults = Vec::new();
            let certificate = texts.tls_certificate.check(&mut faults, optional_file).flatten();
            if let Some(url) = url {
                return if faults.is_empty() { health_url(&url, certificate) } else { Err(Refusal(faults)) };
            }
            let listen = texts.listen.check(&mut faults, address);
            let watched = texts.metrics_listen.check(&mut faults, optional_address);
            // Where that is answered by itself, it is answered whatever else there is to do.
            let listen = listen.zip(watched).map(|(listen, watched)| watched.unwrap_or(listen)).ok_or(Refusal(faults))?;
            Ok(Command::Health { authority: reachable(listen).to_string(), path: "/readyz".to_owned(), certificate })
        }
        Some(Verb::Key { command }) => {
            let texts = Texts::gather(line.flags, environment, &File::read(named)?);
            let mut faults = Vec::new();
            let database = texts.database.check(&mut faults, database).ok_or(Refusal(faults))?;
            Ok(Command::Key { database, command })
        }
        Some(Verb::Serve) | None => {
            let file = File::read(named)?;
            Config::check(&Texts::gather(line.flags, environment, &file)).map(|config| Command::Serve(Box::new(config)))
        }
    }
}

/// `http://host:port/path` or the same with `https`, of which the port and the path may be missing.
fn health_url(url: &str, certificate: Option<PathBuf>) -> Result<Command, Refusal> {
    let (rest, usual, certificate) = match url.strip_prefix("https://") {
        // Nobody's word is taken for it but that of the file.
        Some(_) if certificate.is_none() => {
            return Err("--url is of https, and --tls-certificate does not say which certificate is the right one".to_owned().into());
        }
        Some(rest) => (Some(rest), 443, certificate),
        None => (url.strip_prefix("http://"), 80, None),
    };
    let rest = rest.filter(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace));
    let Some(rest) = rest else {
        return Err(format!("--url is not of the form http://host:port/path: {url:?}").into());
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:{usual}") };
    let path = if path.is_empty() { "/readyz" } else { path }.to_owned();
    Ok(Command::Health { authority, path, certificate })
}

/// The address under which this machine reaches a server that listens on `listen`.
#[must_use]
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let host = match listen.ip() {
        IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        host => host,
    };
    SocketAddr::new(host, listen.port())
}

impl Config {
    /// Every setting at its default, but for the database. Neither the command line nor the environment nor a file is read.
    ///
    /// # Errors
    /// The database's path cannot be used.
    pub fn with_database(database: &Path) -> Result<Self, Refusal> {
        let database = database.to_str().ok_or_else(|| "the path of the database is not UTF-8".to_owned())?;
        let flags = Flags { database: Some(database.to_owned()), ..Flags::default() };
        Self::check(&Texts::gather(flags, &|_| None, &File::default()))
    }

    fn check(texts: &Texts) -> Result<Self, Refusal> {
        let mut faults = Vec::new();
        let listen = texts.listen.check(&mut faults, address);
        let grpc_listen = texts.grpc_listen.check(&mut faults, optional_address);
        let metrics_listen = texts.metrics_listen.check(&mut faults, optional_address);
        let tls = (texts.tls_certificate.check(&mut faults, optional_file), texts.tls_key.check(&mut faults, optional_file));
        let tls = match (tls.0.flatten(), tls.1.flatten()) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            (certificate, _) => {
                let texts = [&texts.tls_certificate, &texts.tls_key];
                let [given, lacking] = if certificate.is_some() { texts } else { [texts[1], texts[0]] };
                faults.push(format!("{} is set, and --{} is not: TLS needs both", given.place(), lacking.name.replace('_', "-")));
                None
            }
        };
        let hosts = texts.hosts.check(&mut faults, hosts);
        let default_model = texts.default_model.check(&mut faults, default_model);
        let database = texts.database.check(&mut faults, database);
        let log_format = texts.log_format.check(&mut faults, log_format);
        let log_level = texts.log_level.check(&mut faults, log_level);
        let insecure = texts.insecure.check(&mut faults, boolean);
        let cors_origins = texts.cors_origins.check(&mut faults, origins);
        let threads = |text: &str| if text == "auto" { Ok(cores()) } else { count(text) };
        let serving_threads = texts.serving_threads.check(&mut faults, threads);
        let busy_poll = texts.busy_poll.check(&mut faults, |text| match duration(text)? {
            longer if longer > LONGEST_BUSY_POLL => Err(format!("is more than {} ms: {text:?}", LONGEST_BUSY_POLL.as_millis())),
            duration => Ok(duration),
        });
        let compute_threads = texts.compute_threads.check(&mut faults, threads);
        let readers = texts.readers.check(&mut faults, count::<u32>);
        let fit_queue = texts.fit_queue.check(&mut faults, count::<usize>);
        let body_limit = texts.body_limit.check(&mut faults, |text| match size(text)? {
            0 => Err("is 0, but predictions and fits need bodies; the default is 64MiB".to_owned()),
            bytes => usize::try_from(bytes).map_err(|_| "is more than this machine can address".to_owned()),
        });
        let upload_limit = texts.upload_limit.check(&mut faults, size);
        let packed_limit = texts.packed_limit.check(&mut faults, size);
        let unpack_ratio =
            texts.unpack_ratio.check(&mut faults, |text| text.parse::<u64>().map_err(|_| format!("is not a whole number: {text:?}")));
        let remember_ttl = texts.remember_ttl.check(&mut faults, |text| match duration(text)? {
            Duration::ZERO => Err("is 0, with which nothing would be remembered; the default is 7d".to_owned()),
            duration => Ok(duration),
        });
        let watch_inputs = texts.watch_inputs.check(&mut faults, boolean);
        let concurrent_predictions =
            texts.concurrent_predictions.check(&mut faults, |text| if text == "auto" { Ok(None) } else { count(text).map(Some) });
        let concurrent_updates = texts.concurrent_updates.check(&mut faults, count::<usize>);
        let concurrent_streams = texts.concurrent_streams.check(&mut faults, count::<usize>);
        let queued = fit_queue.unwrap_or_default();
        let concurrent_fits =
            texts.concurrent_fits.check(&mut faults, |text| if text == "auto" { Ok(queued.saturating_mul(2)) } else { count(text) });
        let concurrent_uploads = texts.concurrent_uploads.check(&mut faults, count::<usize>);
        let rate = texts.key_rate.check(&mut faults, |text| match text {
            "0" => Ok(None),
            text => count::<u32>(text).map(Some),
        });
        let burst = texts.key_burst.check(&mut faults, |text| if text == "auto" { Ok(None) } else { count::<u32>(text).map(Some) });
        let storage_limit = texts.storage_limit.check(&mut faults, |text| match size(text)? {
            bytes @ 1..SMALLEST_STORAGE => Err(format!("is {bytes} bytes, in which nothing can be kept; at least 1MiB, or 0 for no limit")),
            bytes => Ok(bytes),
        });
        let max_connections = texts.max_connections.check(&mut faults, |text| match count::<usize>(text)? {
            // The most permits that a semaphore of the runtime can hand out.
            connections if connections <= usize::MAX >> 3 => Ok(connections),
            _ => Err("is more than can be counted".to_owned()),
        });
        let header_timeout = texts.header_timeout.check(&mut faults, positive_duration);
        let body_timeout = texts.body_timeout.check(&mut faults, positive_duration);
        let answer_timeout = texts.answer_timeout.check(&mut faults, positive_duration);
        let min_body_rate = texts.min_body_rate.check(&mut faults, size);
        let idle_timeout = texts.idle_timeout.check(&mut faults, positive_duration);
        let drain_timeout = texts.drain_timeout.check(&mut faults, duration);
        let config = (|| {
            Some(Self {
                listen: listen?,
                grpc_listen: grpc_listen?,
                metrics_listen: metrics_listen?,
                tls,
                // Whoever is told to listen by a name is asked by it.
                hosts: [hosts?, named_host(texts.listen.value.as_deref().unwrap_or_default())].concat(),
                default_model: default_model?,
                database: database?,
                log_format: log_format?,
                log_level: log_level?,
                insecure: insecure?,
                cors_origins: cors_origins?,
                serving_threads: serving_threads?,
                busy_poll: busy_poll?,
                compute_threads: compute_threads?,
                readers: readers?,
                fit_queue: fit_queue?,
                body_limit: body_limit?,
                upload_limit: upload_limit?,
                packed_limit: packed_limit?,
                unpack_ratio: unpack_ratio?,
                remember_ttl: remember_ttl?,
                watch_inputs: watch_inputs?,
                concurrent_predictions: concurrent_predictions?,
                concurrent_updates: concurrent_updates?,
                concurrent_streams: concurrent_streams?,
                concurrent_fits: concurrent_fits?,
                concurrent_uploads: concurrent_uploads?,
                key_rate: match (rate?, burst?) {
                    (Some(rate), burst) => Some((rate, burst.unwrap_or(rate))),
                    (None, _) => None,
                },
                storage_limit: storage_limit?,
                max_connections: max_connections?,
                header_timeout: header_timeout?,
                body_timeout: body_timeout?,
                answer_timeout: answer_timeout?,
                min_body_rate: min_body_rate?,
                idle_timeout: idle_timeout?,
                drain_timeout: drain_timeout?,
            })
        })();
        config.filter(|_| faults.is_empty()).ok_or(Refusal(faults))
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let fault = || format!("is not an address and a port, such as 127.0.0.1:8080: {text:?}");
    let (host, port) = text.rsplit_once(':').ok_or_else(fault)?;
    let port = port.parse::<u16>().map_err(|_| fault())?;
    if host.is_empty() {
        return Err(fault());
    }
    let mut addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|error| format!("names a host that is not known here: {host:?} ({error})"))?.collect();
    // `localhost` is often both; what people paste is 127.0.0.1.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| format!("names a host without an address: {host:?}"))
}

fn optional_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" { Ok(None) } else { address(text).map(Some) }
}

fn optional_file(text: &str) -> Result<Option<PathBuf>, String> {
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// Names of hosts, with commas between them.
fn hosts(text: &str) -> Result<Vec<String>, String> {
    let hosts: Vec<String> = text.split(',').map(|host| host.trim().to_ascii_lowercase()).filter(|host| !host.is_empty()).collect();
    let is_name = |host: &String| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    match hosts.iter().find(|host| !is_name(host)) {
        Some(host) => Err(format!("has what is not the name of a host, such as lsqd.example.com: {host:?}")),
        None => Ok(hosts),
    }
}

/// The host of an address, if it is a name.
fn named_host(address: &str) -> Vec<String> {
    let host = address.trim().rsplit_once(':').map_or("", |(host, _)| host);
    let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
    if host.is_empty() || is_address { Vec::new() } else { vec![host.to_ascii_lowercase()] }
}

fn database(text: &str) -> Result<PathBuf, String> {
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return Err(
            "is a PostgreSQL address, but this build keeps everything in one SQLite file: give a path, such as ./lsqd.db".to_owned()
        );
    }
    if text.contains("://") {
        return Err(format!("is an address, but the database is a SQLite file: give a path, such as ./lsqd.db: {text:?}"));
    }
    if text.is_empty() || text == ":memory:" {
        return Err("names no file; the database is a SQLite file, such as ./lsqd.db".to_owned());
    }
    let path = PathBuf::from(text);
    if path.is_dir() {
        return Err(format!("is a folder; name a file in it, such as {}", path.join("lsqd.db").display()));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(format!("is in a folder that does not exist: {}. Make the folder first", folder.display()));
    }
    Ok(path)
}

fn default_model(text: &str) -> Result<Option<String>, String> {
    if text.chars().any(|character| character.is_control() || character == '/') {
        return Err("is no name of a model".to_owned());
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("is neither text nor json: {text:?}")),
    }
}

fn log_level(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text).map_err(|error| format!("is not a log filter: {text:?} ({error})"))?;
    Ok(text.to_owned())
}

/// Origins as browsers say them: scheme, host and port, nothing behind.
fn origins(text: &str) -> Result<Vec<String>, String> {
    let is_one = |origin: &str| {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        origin == "*"
            || rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"/,*?#@".contains(&byte)))
    };
    let origins: Vec<String> =
        text.split(',').map(|origin| origin.trim().to_ascii_lowercase()).filter(|origin| !origin.is_empty()).collect();
    match origins.iter().find(|origin| !is_one(origin)) {
        Some(origin) => Err(format!("names what is not an origin, such as https://example.com or http://localhost:3000: {origin:?}")),
        None => Ok(origins),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("is neither true nor false: {text:?}")),
    }
}

fn count<T: std::str::FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    text.parse::<T>().ok().filter(|count| *count >= T::from(1)).ok_or_else(|| format!("is not a whole number from 1 on: {text:?}"))
}

/// The number at the start and the unit behind it.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

/// `1024`, `64MiB`, `1.5 GB`.
fn size(text: &str) -> Result<u64, String> {
    let fault = || format!("is not a size, such as 1048576, 64MiB or 2GB: {text:?}");
    if let Ok(bytes) = text.parse() {
        return Ok(bytes);
    }
    let (number, unit) = number_and_unit(text).ok_or_else(fault)?;
    let scale = match unit.to_ascii_lowercase().as_str() {
        "b" => 1u64,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(fault()),
    };
    let bytes = number * scale as f64;
    if bytes < u64::MAX as f64 { Ok(bytes.round() as u64) } else { Err(fault()) }
}

/// `25`, `25s`, `500ms`, `50us`, `2m`, `1h`, `7d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("is not a duration, such as 25s, 500ms or 2m: {text:?}");
    let (number, unit) = number_and_unit(text).ok_or_else(fault)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(fault()),
    };
    // Past a year nobody means it, and clocks overflow somewhere.
    if seconds > 366.0 * 86_400.0 {
        return Err(format!("is longer than a year: {text:?}"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| fault())
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("is 0, with which no request could be answered".to_owned()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Command, Refusal> {
        let line = CommandLine::try_parse_from(std::iter::once("lsqd").chain(arguments.iter().copied())).unwrap();
        resolve(line, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, Refusal> {
        match command(arguments, variables)? {
            Command::Serve(config) => Ok(*config),
            other => Err(format!("not a server: {other:?}").into()),
        }
    }

    fn refusal(arguments: &[&str], variables: &[(&str, &str)]) -> String {
        config(arguments, variables).unwrap_err().to_string()
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        CommandLine::command().debug_assert();
        for (name, variable, _) in SETTINGS {
            assert_eq!(*variable, format!("LSQD_{}", name.to_ascii_uppercase()));
        }
    }

    #[test]
    fn every_default_is_a_good_value() {
        let config = config(&[], &[]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.database, Path::new("./lsqd.db"));
        assert_eq!(config.compute_threads, cores());
        assert_eq!(config.body_limit, 64 << 20);
        assert_eq!(config.drain_timeout, Duration::from_secs(25));
        assert_eq!(config, Config::with_database(Path::new("./lsqd.db")).unwrap());
    }

    #[test]
    fn flag_wins_over_environment_over_file_over_default() {
        let (_folder, path) = file("readers = 3\nfit-queue = 5\nbody_limit = \"1MiB\"\n");
        let variables = [("LSQD_CONFIG", path.as_str()), ("LSQD_READERS", "4"), ("LSQD_FIT_QUEUE", "6")];
        let config = config(&["serve", "--readers", "9"], &variables).unwrap();
        assert_eq!((config.readers, config.fit_queue, config.body_limit, config.upload_limit), (9, 6, 1 << 20, 0));
        let before_the_verb = super::tests::config(&["--readers", "9", "serve"], &variables).unwrap();
        assert_eq!(before_the_verb, config);
    }

    #[test]
    fn the_example_file_says_every_default() {
        let file = File::parse(PathBuf::from("lsqd.example.toml"), include_str!("../lsqd.example.toml")).unwrap();
        assert_eq!(file.entries.len(), SETTINGS.len());
        assert_eq!(Config::check(&Texts::gather(Flags::default(), &|_| None, &file)).unwrap(), config(&[], &[]).unwrap());
    }

    #[test]
    fn a_variable_set_to_nothing_is_not_set() {
        assert_eq!(config(&[], &[("LSQD_READERS", "")]).unwrap().readers, 8);
    }

    #[test]
    fn a_bad_value_names_its_source() {
        let (_folder, path) = file("idle-timeout = \"soon\"\nlog-level = [\"info\"]\n");
        let message = refusal(&["--config", &path, "--readers", "0"], &[("LSQD_BODY_LIMIT", "lots")]);
        for part in ["--readers is not", "the environment variable LSQD_BODY_LIMIT is not a size", "`idle-timeout` in ", "`log-level` in "]
        {
            assert!(message.contains(part), "{part} is not in {message}");
        }
        assert_eq!(message.lines().count(), 4, "{message}");
    }

    #[test]
    fn the_file_is_held_to_its_keys() {
        let (_folder, path) = file("lisen = \"127.0.0.1:1\"\nfit-queue = 1\nfit_queue = 2\n");
        let message = refusal(&["--config", &path], &[]);
        assert!(message.contains("`lisen`") && message.contains("`fit-queue` twice"), "{message}");
        let (_folder, path) = file("listen = \n");
        assert!(refusal(&["--config", &path], &[]).contains("is not TOML"));
        assert!(refusal(&["--config", "/nowhere/lsqd.toml"], &[]).contains("cannot be read"));
    }

    #[test]
    fn whether_an_open_address_is_meant_is_said_by_flag_or_variable() {
        assert!(config(&["--listen", "0.0.0.0:1", "serve"], &[("LSQD_INSECURE", "true")]).unwrap().insecure);
        assert!(!config(&["--insecure=false", "serve"], &[("LSQD_INSECURE", "true")]).unwrap().insecure);
    }

    #[test]
    fn looking_for_the_next_request_has_a_bound() {
        assert_eq!(config(&[], &[]).unwrap().busy_poll, Duration::from_micros(50));
        assert_eq!(config(&["--busy-poll", "0"], &[]).unwrap().busy_poll, Duration::ZERO);
        assert!(refusal(&["--busy-poll", "11ms"], &[]).contains("--busy-poll is more than 10 ms"));
    }

    #[test]
    fn limits_are_counts_and_a_rate_has_its_burst() {
        let of = |arguments: &[&str]| super::tests::config(arguments, &[]).unwrap();
        let usual = of(&[]);
        assert_eq!((usual.concurrent_predictions, usual.concurrent_fits, usual.key_rate, usual.storage_limit), (None, 128, None, 0));
        assert_eq!(of(&["--fit-queue", "5"]).concurrent_fits, 10);
        assert_eq!(of(&["--concurrent-predictions", "9"]).concurrent_predictions, Some(9));
        assert_eq!(of(&["--key-rate", "50"]).key_rate, Some((50, 50)));
        assert_eq!(of(&["--key-rate", "50", "--key-burst", "200"]).key_rate, Some((50, 200)));
        assert_eq!(of(&["--key-burst", "200"]).key_rate, None);
        for bad in ["--concurrent-uploads", "--key-burst", "--concurrent-predictions"] {
            assert!(refusal(&[bad, "0"], &[]).contains(bad), "{bad}");
        }
        assert!(refusal(&["--storage-limit", "4096"], &[]).contains("--storage-limit is 4096 bytes"));
    }

    #[test]
    fn origins_are_listed_as_browsers_say_them() {
        assert_eq!(config(&[], &[]).unwrap().cors_origins, Vec::<String>::new());
        let listed = config(&["--cors-origins", "https://A.example, http://localhost:3000,"], &[]).unwrap().cors_origins;
        assert_eq!(listed, ["https://a.example", "http://localhost:3000"]);
        assert_eq!(config(&[], &[("LSQD_CORS_ORIGINS", "*")]).unwrap().cors_origins, ["*"]);
        for bad in ["a.example", "https://a.example/", "https://", "https://*.example", "null"] {
            assert!(refusal(&["--cors-origins", bad], &[]).contains("--cors-origins names what is not an origin"), "{bad}");
        }
    }

    #[test]
    fn a_certificate_and_its_key_are_given_together() {
        assert_eq!(config(&[], &[]).unwrap().tls, None);
        let files = config(&["--tls-certificate", "c.pem"], &[("LSQD_TLS_KEY", "k.pem")]).unwrap().tls.unwrap();
        assert_eq!((files.certificate.as_path(), files.key.as_path()), (Path::new("c.pem"), Path::new("k.pem")));
        let message = refusal(&["--tls-certificate", "c.pem"], &[]);
        assert_eq!(message, "error: --tls-certificate is set, and --tls-key is not: TLS needs both");
        let message = refusal(&[], &[("LSQD_TLS_KEY", "k.pem")]);
        assert_eq!(message, "error: the environment variable LSQD_TLS_KEY is set, and --tls-certificate is not: TLS needs both");
    }

    #[test]
    fn hosts_are_names_and_a_name_that_is_listened_on_is_one() {
        assert_eq!(config(&["--hosts", "A.example, b.example,"], &[]).unwrap().hosts, ["a.example", "b.example"]);
        assert_eq!(config(&["--listen", "localhost:1"], &[]).unwrap().hosts, ["localhost"]);
        assert_eq!(config(&["--listen", "[::1]:1"], &[]).unwrap().hosts, Vec::<String>::new());
        for bad in ["https://a.example", "a.example:80", "*", "a b"] {
            assert!(refusal(&["--hosts", bad], &[]).contains("--hosts has what is not the name of a host"), "{bad}");
        }
    }

    #[test]
    fn keys_are_of_the_database_that_the_settings_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let variables = [("LSQD_DATABASE", path.to_str().unwrap()), ("LSQD_LISTEN", "nonsense")];
        let Command::Key { database, command } = command(&["key", "revoke", "abc"], &variables).unwrap() else { panic!("not of keys") };
        assert_eq!((database.as_path(), command), (path.as_path(), KeyCommand::Revoke { id: "abc".to_owned() }));
        let line =
            ["key", "create", "--scopes", "read,predict", "--models", "a*", "--models", "b", "--expires", "90d", "--database", "./y.db"];
        let Command::Key { database, command } = super::tests::command(&line, &variables).unwrap() else { panic!("not of keys") };
        let KeyCommand::Create { scopes, models, datasets, name, expires } = command else { panic!("not made") };
        assert_eq!((database.to_str(), scopes.as_str(), models), (Some("./y.db"), "read,predict", vec!["a*".to_owned(), "b".to_owned()]));
        assert_eq!((datasets, name, expires.as_deref()), (Vec::new(), None, Some("90d")));
    }

    #[test]
    fn the_database_is_a_file_in_a_folder_that_is_there() {
        for (database, part) in [
            ("postgres://localhost/lsqd", "PostgreSQL"),
            ("postgresql://localhost/lsqd", "PostgreSQL"),
            ("mysql://localhost/lsqd", "SQLite"),
            ("/nowhere/at/all/lsqd.db", "/nowhere/at/all"),
            (".", "folder"),
            (":memory:", "no file"),
        ] {
            let message = refusal(&["--database", database], &[]);
            assert!(message.contains(part), "{database}: {message}");
        }
    }

    #[test]
    fn sizes_and_durations_have_units() {
        for (text, bytes) in
            [("0", 0), ("1024", 1024), ("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("2k", 2048), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "-1", "64 MiBs", "MiB", "1e9", "99999999999TiB", "1.2.3"] {
            assert!(size(text).is_err(), "{text}");
        }
        for (text, milliseconds) in
            [("0", 0), ("25", 25_000), ("25s", 25_000), ("500ms", 500), ("1.5m", 90_000), ("1h", 3_600_000), ("7d", 604_800_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1s", "5 days", "9000h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0").is_err());
    }

    #[test]
    fn health_asks_where_the_server_listens() {
        let ask = |arguments: &[&str], variables: &[(&str, &str)]| match command(arguments, variables).unwrap() {
            Command::Health { authority, path, certificate: None } => format!("{authority} {path}"),
            Command::Health { authority, path, certificate: Some(file) } => format!("{authority} {path} {}", file.display()),
            other => format!("{other:?}"),
        };
        assert_eq!(ask(&["health"], &[("LSQD_LISTEN", "0.0.0.0:9000"), ("LSQD_DATABASE", "/nowhere/else/x.db")]), "127.0.0.1:9000 /readyz");
        assert_eq!(ask(&["health", "--listen", "[::]:7"], &[]), "[::1]:7 /readyz");
        assert_eq!(ask(&["health", "--metrics-listen", "0.0.0.0:9"], &[("LSQD_LISTEN", "0.0.0.0:9000")]), "127.0.0.1:9 /readyz");
        assert_eq!(ask(&["health", "--url", "http://lsqd:8080/livez"], &[]), "lsqd:8080 /livez");
        assert_eq!(ask(&["health", "--url", "http://lsqd"], &[]), "lsqd:80 /readyz");
        assert_eq!(ask(&["health", "--url", "http://[::1]/x"], &[]), "[::1]:80 /x");
        assert!(command(&["health", "--url", "https://lsqd"], &[]).unwrap_err().to_string().contains("--tls-certificate"));
        let encrypted = [("LSQD_TLS_CERTIFICATE", "c.pem"), ("LSQD_TLS_KEY", "k.pem")];
        assert_eq!(ask(&["health"], &encrypted), "127.0.0.1:8080 /readyz c.pem");
        assert_eq!(ask(&["health", "--url", "https://lsqd/livez"], &encrypted), "lsqd:443 /livez c.pem");
        assert_eq!(ask(&["health", "--url", "http://lsqd"], &encrypted), "lsqd:80 /readyz");
        assert!(command(&["health", "--url", "http:///x"], &[]).is_err());
    }
    #[test]
    fn the_commands_on_a_file_know_where_the_database_is_and_nothing_else() {
        let file = |path: &str| PathBuf::from(path);
        // An address that a server would refuse is none of their business.
        let variables = [("LSQD_DATABASE", "x.db"), ("LSQD_LISTEN", "0.0.0.0:8080")];
        let backup = Command::Backup { database: file("x.db"), to: file("b.db"), force: false };
        assert_eq!(command(&["backup", "b.db"], &variables), Ok(backup));
        let restore = Command::Restore { from: file("b.db"), database: file("y.db"), force: true };
        assert_eq!(command(&["restore", "b.db", "--force", "--database", "y.db"], &variables), Ok(restore));
        let check = Command::Check { database: file("x.db"), repair: true, json: true };
        assert_eq!(command(&["check", "--repair", "--json"], &variables), Ok(check));
        assert!(command(&["check", "--database", "postgres://somewhere"], &[]).is_err());
    }
}
