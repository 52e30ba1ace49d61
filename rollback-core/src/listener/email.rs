//! Events as e-mail.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    Listener, RolloutEvent, Tally, Tell,
    channel::{Channel, Courier},
};
use crate::{
    error::{Error, ErrorKind, Result},
    tls,
};

/// Sends events as e-mail, through one SMTP server, always over TLS.
///
/// The subject says what happened to which target; the text says why, what serves now and what to do, and with the
/// feature `report` it is the whole report as Markdown. A message is tried up to eight times within some minutes, on a
/// thread of its own: a mail server that hangs delays no rollout. One that offers no TLS, or shows a certificate that we do
/// not trust, is not tried again: the log says so at once. 256 messages may wait; [`Tally`] counts what does not
/// leave. What the server has taken may still not arrive: mail is like that.
///
/// ```no_run
/// # use rollback_core::{engine::Engine, listener::{Email, Tell}, store::Memory};
/// let email = Email::new("smtp.example.com", "Rollouts <rollouts@example.com>", ["ops@example.com"])?
///     .login("rollouts", std::env::var("SMTP_PASSWORD").unwrap())
///     .tell(Tell::Ends);
/// let engine = Engine::builder(Memory::new()).listener(email).build()?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Email(Channel<Mailer>);

impl Email {
    /// Through this server, from this address to these: `ops@example.com` or `Operations <ops@example.com>`. By STARTTLS
    /// on port 587; a server that does not offer it gets no mail.
    ///
    /// # Errors
    /// `Invalid` when there is nobody to write to, or an address is none.
    pub fn new<A: AsRef<str>>(
        server: impl Into<String>,
        from: impl AsRef<str>,
        to: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let to = to.into_iter().map(|address| mailbox(address.as_ref())).collect::<Result<Vec<_>>>()?;
        if to.is_empty() {
            return Err(Error::invalid("an e-mail listener has nobody to write to; one address or more is accepted"));
        }
        let server = server.into();
        Ok(Self(Channel::new(Mailer {
            name: format!("smtp {server}:587"),
            server,
            port: 587,
            tls_first: false,
            login: None,
            authorities: Vec::new(),
            from: mailbox(from.as_ref())?,
            to,
        })))
    }

    /// On this port, instead of 587.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        let mailer = &mut self.0.courier;
        mailer.port = port;
        mailer.name = format!("smtp {}:{port}", mailer.server);
        self
    }

    /// TLS from the first byte, as on port 465, which this sets; [`port`](Self::port) after it sets another.
    #[must_use]
    pub fn tls_first(mut self) -> Self {
        self.0.courier.tls_first = true;
        self.port(465)
    }

    /// With this user and password, which are sent only once the connection is secure.
    #[must_use]
    pub fn login(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.courier.login = Some(Credentials::new(user.into(), password.into()));
        self
    }

    /// Trusts the authorities in this PEM as well as those that the machine trusts.
    ///
    /// # Errors
    /// `Invalid` when there is no certificate in it.
    pub fn trust(mut self, pem: &[u8]) -> Result<Self> {
        let refused = "the authority to be trusted is not a certificate in PEM";
        // Of a text without one lettre would make an authority that vouches for nobody.
        let mut certificates = CertificateDer::pem_slice_iter(pem);
        if certificates.next().is_none_or(|first| first.is_err()) {
            return Err(Error::invalid(refused));
        }
        let authority = Certificate::from_pem(pem).map_err(|e| Error::invalid(refused).because(e))?;
        self.0.courier.authorities.push(authority);
        Ok(self)
    }

    /// These events. By default [`Tell::Decisions`].
    #[must_use]
    pub const fn tell(mut self, tell: Tell) -> Self {
        self.0.tell = tell;
        self
    }

    /// Counts what becomes of the messages.
    pub fn tally(&self) -> Tally {
        self.0.tally.clone()
    }
}

impl Listener for Email {
    fn on(&self, event: &RolloutEvent) {
        self.0.on(event);
    }
}

#[derive(Clone)]
struct Mailer {
    name: String,
    server: String,
    port: u16,
    tls_first: bool,
    login: Option<Credentials>,
    authorities: Vec<Certificate>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Mailer {
    fn transport(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>> {
        let mut parameters = TlsParameters::builder(self.server.clone());
        for authority in &self.authorities {
            parameters = parameters.add_root_certificate(authority.clone());
        }
        let parameters =
            parameters.build().map_err(|e| Error::invalid("no TLS can be spoken with the mail server").because(e))?;
        let tls = if self.tls_first { Tls::Wrapper(parameters) } else { Tls::Required(parameters) };
        // "Dangerous" is only that nothing is set yet; TLS is, on the next line.
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.server)
            .port(self.port)
            .tls(tls)
            .timeout(Some(STEP));
        if let Some(login) = &self.login {
            builder = builder.credentials(login.clone());
        }
        Ok(builder.build())
    }

    fn letter(&self, event: &RolloutEvent, number: &str) -> Result<Message> {
        let domain = self.from.email.domain();
        let mut letter = Message::builder()
            .from(self.from.clone())
            // The same in every try, so that a mailbox keeps one of them.
            .message_id(Some(format!("<{number}@{domain}>")))
            .subject(event.title(200))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            letter = letter.to(to.clone());
        }
        letter.body(event.to_text()).map_err(|e| Error::invalid("an e-mail cannot be written").because(e))
    }
}

impl fmt::Debug for Mailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailer").field("to", &self.name).field("login", &self.login.is_some()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Courier for Mailer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn carry(&self, event: &RolloutEvent, number: &str) -> Result<()> {
        let letter = self.letter(event, number)?;
        let transport = self.transport()?;
        let sent = tokio::time::timeout(WHOLE, transport.send(letter)).await.map_err(|_| {
            Error::new(ErrorKind::Unavailable, format!("{} did not take a message in {WHOLE:?}", self.name))
        })?;
        sent.map(drop).map_err(|e| {
            let untrusted = tls::is_untrusted(&e);
            let kind = if e.is_permanent() {
                ErrorKind::Denied
            } else if e.is_client() || e.is_tls() || untrusted {
                ErrorKind::Invalid
            } else {
                ErrorKind::Unavailable
            };
            // Of its own words only the status: what a server says may quote what it was told.
            let why = e.status().map_or_else(|| cause(&e), |status| format!("status {status}"));
            let remedy = if untrusted { "; say trust with the certificate of its authority" } else { "" };
            Error::new(kind, format!("{} took no message: {why}{remedy}", self.name))
        })
    }
}

/// The innermost cause: the ones around it say "connection error".
fn cause(error: &lettre::transport::smtp::Error) -> String {
    tls::chain(error).last().map_or_else(|| error.to_string(), ToString::to_string)
}

fn mailbox(address: &str) -> Result<Mailbox> {
    address.parse().map_err(|e| {
        Error::invalid(format!(
            "{address:?} is no e-mail address; ops@example.com or Ops <ops@example.com> is accepted"
        ))
        .because(e)
    })
}

/// For one step of the talk with the server.
const STEP: Duration = Duration::from_secs(10);
/// For the whole of it.
const WHOLE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        let email = Email::new("mail.example", "a@example.com", ["b@example.com"]).unwrap().login("ops", "s3cr3t");
        let shown = format!("{email:?}");
        assert!(shown.contains("smtp mail.example:587") && !shown.contains("s3cr3t"), "{shown}");
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        let error = Email::new("mail.example", "a@example.com", ["nobody"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"nobody\" is no e-mail address; ops@example.com or Ops <ops@example.com> is accepted"
        );
        let error = Email::new("mail.example", "a@example.com", [""; 0]).unwrap_err();
        assert!(error.to_string().contains("nobody to write to"), "{error}");
    }
}
