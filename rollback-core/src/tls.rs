//! What an error says of a secure connection that did not come about.

use std::{error::Error as StdError, io};

/// An error and its causes. An `io::Error` hides the error it was made of, so it is opened here.
pub(crate) fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn StdError + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

/// Whether the other side showed a certificate that we do not trust. Another try in a minute finds the same one.
pub(crate) fn is_untrusted(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|cause| matches!(cause.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))))
}
