//! Moving, selecting and making elements: Reshape, Gather, Concat, Resize and the like.

pub mod compress;
pub mod concat;
pub mod constant;
pub mod constant_of_shape;
pub mod depth_to_space;
pub mod dropout;
pub mod expand;
pub mod eye_like;
mod factors;
pub mod flatten;
pub mod gather;
pub mod gather_elements;
pub mod gather_nd;
pub mod identity;
pub mod moves;
mod mt19937;
pub mod non_zero;
pub mod one_hot;
pub mod pad;
pub mod params;
pub mod range;
pub mod reshape;
pub mod shape_op;
pub mod size;
pub mod slice;
pub mod split;
pub mod squeeze;
pub mod tile;
pub mod transpose;
pub mod trilu;
pub mod unsqueeze;
pub mod where_op;

crate::registry::operators! {
    "Compress" => compress::build,
    "Concat" => concat::build,
    "Constant" => constant::build,
    "ConstantOfShape" => constant_of_shape::build,
    "DepthToSpace" => depth_to_space::build,
    "Dropout" => dropout::build,
    "Expand" => expand::build,
    "EyeLike" => eye_like::build,
    "Flatten" => flatten::build,
    "Gather" => gather::build,
    "GatherElements" => gather_elements::build,
    "GatherND" => gather_nd::build,
    "Identity" => identity::build,
    "NonZero" => non_zero::build,
    "OneHot" => one_hot::build,
    "Pad" => pad::build,
    "Range" => range::build,
    "Reshape" => reshape::build,
    "Shape" => shape_op::build,
    "Size" => size::build,
    "Slice" => slice::build,
    "SpaceToDepth" => depth_to_space::build_space_to_depth,
    "Split" => split::build,
    "Squeeze" => squeeze::build,
    "Tile" => tile::build,
    "Transpose" => transpose::build,
    "Trilu" => trilu::build,
    "Unsqueeze" => unsqueeze::build,
    "Where" => where_op::build,
}
