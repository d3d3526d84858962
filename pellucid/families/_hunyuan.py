"""Settings that Hunyuan's published config.json files carry for the authors' own code; transformers' code reads none of them."""
from pellucid.families._config import Config

_IMAGES = ("anyres_pooling_size anyres_vit_max_image_size anyres_vit_two_views image_token_id im_end_id im_newline_id im_start_id mask_init_id "
           "num_media_embeds skip_cls_token text_end_id text_start_id video_end_id video_start_id vit_add_patchemb_bias vit_input_resolution "
           "vit_mapping_type vit_norm_type vit_patch vit_path vit_remove_prenorm vit_token vit_type vit_used_rms_norm")


def settle(c: Config, d_head: int) -> None:
    """Expects of each switch what transformers' code does without asking, and names what cannot matter."""
    c.expect(attention_head_dim=d_head, mlp_bias=False, norm_type="rms", use_cla=False, use_qk_norm=True, use_rotary_pos_emb=True)
    c.inert(**dict.fromkeys(("add_classification_head", "class_num", "dense_list", "pool_type"), "belongs to a head that classifies"),
            **dict.fromkeys(_IMAGES.split(), "is about images, and no image is read"), pad_id="another name of pad_token_id",
            cla_share_factor="no layer borrows the keys of another: use_cla is off", org_vocab_size="vocab_size is the height of the matrix")
