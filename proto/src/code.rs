//! Enums that are numbers on the wire. One table per enum gives the variants, their codes and their
//! texts, so that the three cannot drift apart.

/// Declares an enum with `code()`, `from_code()` and `Display`. Codes that this version does not
/// know are kept in the last variant: a peer of a later version may send them.
macro_rules! code_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $code:literal => $text:literal, )*
            _ => $other:ident(u64), $other_text:literal,
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[$variant_meta])* $variant, )*
            /// A code that this version does not know.
            $other(u64),
        }

        impl $name {
            /// Every variant that has a name, in the order of their codes.
            pub const NAMED: &[Self] = &[$( Self::$variant, )*];

            /// The code on the wire.
            pub const fn code(self) -> u64 {
                match self {
                    $( Self::$variant => $code, )*
                    Self::$other(code) => code,
                }
            }

            /// The variant of a code on the wire. Codes without a name are kept.
            pub const fn from_code(code: u64) -> Self {
                match code {
                    $( $code => Self::$variant, )*
                    code => Self::$other(code),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $( Self::$variant => f.write_str($text), )*
                    Self::$other(code) => write!(f, $other_text, code),
                }
            }
        }
    };
}

pub(crate) use code_enum;
