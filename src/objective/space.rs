//! Index spaces: the tree of levels that the columns of one objective live at.
//!
//! The root is `batch` (one element). Every other space has a parent, and its elements are cut into one contiguous
//! segment per element of that parent. Each space `S` below the root also has a pair space `S*S`: all ordered pairs of
//! elements of `S` inside one parent element, row-major (first index outermost), the diagonal included.

use super::GraphError;

/// Index of a space in its [`SpaceTree`].
pub type SpaceId = usize;

/// The root space: one element.
pub const BATCH: SpaceId = 0;

struct Space {
    name: String,
    parent: SpaceId,
    /// For a pair space `S*S`, the space `S`.
    pairs_of: Option<SpaceId>,
}

/// The spaces of one graph; parents come before their children.
pub struct SpaceTree {
    spaces: Vec<Space>,
}

impl SpaceTree {
    /// Builds the tree from `(space, parent)` declarations in any order; the root `batch` is implied.
    pub fn new(declared: &[(String, String)]) -> Result<Self, GraphError> {
        let mut tree = SpaceTree {
            spaces: vec![Space {
                name: "batch".into(),
                parent: BATCH,
                pairs_of: None,
            }],
        };
        let mut waiting: Vec<&(String, String)> = declared.iter().collect();
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut postponed = Vec::new();
            for declaration in waiting {
                match tree.index_of(&declaration.1) {
                    Some(parent) => tree.declare(&declaration.0, parent)?,
                    None => postponed.push(declaration),
                }
            }
            if postponed.len() == before {
                let (name, parent) = postponed[0];
                return Err(GraphError(format!(
                    "spaces: the parent '{parent}' of '{name}' is neither 'batch' nor a space below it"
                )));
            }
            waiting = postponed;
        }
        Ok(tree)
    }

    fn declare(&mut self, name: &str, parent: SpaceId) -> Result<(), GraphError> {
        if name.is_empty() || name.contains('*') {
            return Err(GraphError(format!(
                "spaces: '{name}' is not a space name; expected text without '*'"
            )));
        }
        if self.index_of(name).is_some() {
            return Err(GraphError(format!("spaces: '{name}' is declared twice")));
        }
        let elements = self.spaces.len();
        self.spaces.push(Space {
            name: name.into(),
            parent,
            pairs_of: None,
        });
        self.spaces.push(Space {
            name: format!("{name}*{name}"),
            parent,
            pairs_of: Some(elements),
        });
        Ok(())
    }

    fn index_of(&self, name: &str) -> Option<SpaceId> {
        self.spaces.iter().position(|space| space.name == name)
    }

    /// The space called `name`.
    pub fn find(&self, name: &str) -> Result<SpaceId, GraphError> {
        self.index_of(name).ok_or_else(|| {
            let known: Vec<String> = self
                .spaces
                .iter()
                .filter(|space| space.pairs_of.is_none())
                .map(|space| format!("'{}'", space.name))
                .collect();
            GraphError(format!(
                "unknown space '{name}'; this graph has {}",
                known.join(", ")
            ))
        })
    }

    /// The name of a space.
    pub fn name(&self, space: SpaceId) -> &str {
        &self.spaces[space].name
    }

    /// The parent of a space; `None` for the root.
    pub fn parent(&self, space: SpaceId) -> Option<SpaceId> {
        (space != BATCH).then(|| self.spaces[space].parent)
    }

    /// The pair space `S*S` of a space `S` below the root that is not itself a pair space.
    pub fn pairs(&self, space: SpaceId) -> Option<SpaceId> {
        // Declared right after its elements.
        let next = space + 1;
        (self.spaces.get(next)?.pairs_of == Some(space)).then_some(next)
    }

    /// The space `S` of a pair space `S*S`.
    pub fn pairs_of(&self, space: SpaceId) -> Option<SpaceId> {
        self.spaces[space].pairs_of
    }

    /// Whether `upper` is `lower` or one of its ancestors.
    pub fn is_above(&self, upper: SpaceId, lower: SpaceId) -> bool {
        let mut space = lower;
        // Parents have smaller indices, so the walk upwards ends.
        while space > upper {
            space = self.spaces[space].parent;
        }
        space == upper
    }

    /// The finer of two spaces, if one contains the other.
    pub fn join(&self, a: SpaceId, b: SpaceId) -> Option<SpaceId> {
        if self.is_above(a, b) {
            Some(b)
        } else if self.is_above(b, a) {
            Some(a)
        } else {
            None
        }
    }

    /// Every space, parents before children.
    pub fn ids(&self) -> std::ops::Range<SpaceId> {
        0..self.spaces.len()
    }
}
