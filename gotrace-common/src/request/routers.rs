//! What routers but that of `net/http` keep of a request.

use super::{FieldPath, NO_STEP};

/// Where the context that a router keeps of a request has the pattern and the `http.Request` (4 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ContextLayout {
    /// The pattern; [`NO_STEP`] where that is not known, or no such router is there.
    pub pattern: u16,
    /// The request.
    pub request: u16,
}

/// The same of chi's, which has the patterns of all routers on the way, one a level, and no request (6 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MountedLayout {
    /// `RoutePatterns`; [`NO_STEP`] as above.
    pub patterns: u16,
    /// `routePattern`: the last of them, or nothing where the last router had none for the request.
    pub last: u16,
    /// `parentCtx`: the context of the request that the outermost router was called with.
    pub parent: u16,
}

/// How to read what routers but that of `net/http` know of a request (32 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RouterLayouts {
    /// Address of the type of gorilla/mux's routes; 0 where they are not told.
    pub gorilla_route: u64,
    /// The template of such a route.
    pub gorilla_template: FieldPath,
    /// `gin.Context`
    pub gin: ContextLayout,
    /// `echo.context`, or `echo.Context`
    pub echo: ContextLayout,
    /// `chi.Context`
    pub chi: MountedLayout,
    /// Reserved, 0.
    pub reserved: u32,
}

impl RouterLayouts {
    /// There are no such routers.
    pub const NONE: Self = Self {
        gorilla_route: 0,
        gorilla_template: FieldPath::NONE,
        gin: ContextLayout { pattern: NO_STEP, request: NO_STEP },
        echo: ContextLayout { pattern: NO_STEP, request: NO_STEP },
        chi: MountedLayout { patterns: NO_STEP, last: NO_STEP, parent: NO_STEP },
        reserved: 0,
    };
}
