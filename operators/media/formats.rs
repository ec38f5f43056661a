//! Which formats and protocols libav may use, by where an input comes from. What is not listed is refused, however libav
//! would recognise it.
//!
//! A playlist, a script or a description names further inputs. Out of a file they could only be other files, which
//! nobody allowed; so a file is media or nothing. Out of the network they may be on the network, and never a file of this
//! machine.

/// Formats of files: containers, raw streams, and pictures. No playlists (`hls`, `dash`, `imf`), no scripts (`concat`,
/// `lavfi`), no descriptions (`sdp`).
pub const OF_FILES: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,\
                            mjpeg,mjpeg_2000,mpjpeg,smjpeg,avi,flv,live_flv,kux,asf,asf_o,ogg,nut,mxf,mxg,gxf,dv,wtv,rm,ivr,swf,nsv,\
                            nuv,dhav,lvf,vc1,cavsvideo,avs2,avs3,dirac,dnxhd,yuv4mpegpipe,gif,apng,flic,bink,smk,roq,fits,\
                            image2,bmp_pipe,dds_pipe,dpx_pipe,exr_pipe,gif_pipe,j2k_pipe,jpeg_pipe,jpegls_pipe,jpegxl_pipe,\
                            pam_pipe,pbm_pipe,pgm_pipe,ppm_pipe,png_pipe,qoi_pipe,tiff_pipe,webp_pipe,\
                            aac,ac3,eac3,dts,dtshd,truehd,mlp,mp3,flac,wav,w64,aiff,caf,au,amr,ape,tta,tak,wv,ilbc,loas";

/// Protocols of files.
pub const PROTOCOLS_OF_FILES: &str = "file";

/// For what is read without a protocol of libav, and leads nowhere.
pub const NO_PROTOCOL: &str = "none";

/// Formats of what the network sends. Playlists are among them, scripts are not.
pub const OF_NETWORK: &str = "hls,dash,webm_dash_manifest,rtsp,rtp,sdp,sap,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpegtsraw,\
                              mpeg,mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,ivf,mjpeg,mpjpeg,avi,flv,live_flv,asf,asf_o,ogg,\
                              nut,dv,dhav,vc1,yuv4mpegpipe,jpeg_pipe,png_pipe,webp_pipe,\
                              aac,ac3,eac3,dts,mp3,flac,wav,amr,loas,webvtt,srt";

/// What a playlist or a session description from the network may lead to.
pub const PROTOCOLS_OF_NETWORK: &str =
    "http,https,httpproxy,tcp,tls,crypto,udp,rtp,srtp,rtmp,rtmps,rtmpt,rtmpts,rtmpe,srt,hls,rtsp,rtsps";

/// Formats of a session description in a file, and of what comes as it says.
pub const OF_DESCRIPTIONS: &str = "sdp,rtp,mpegts,asf";

/// What a session description in a file may lead to.
pub const PROTOCOLS_OF_DESCRIPTIONS: &str = "file,rtp,srtp,udp";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_leads_on_is_a_format_of_files_and_no_script_is_one_at_all() {
        let has = |list: &str, name: &str| list.split(',').any(|known| known == name);
        for name in ["hls", "dash", "imf", "sdp", "rtsp", "rtp", "concat", "lavfi", "tedcaptions"] {
            assert!(!has(OF_FILES, name), "{name}");
        }
        for list in [OF_NETWORK, OF_DESCRIPTIONS] {
            for name in ["concat", "lavfi", "imf", "image2", "v4l2"] {
                assert!(!has(list, name), "{name}");
            }
        }
        for name in ["file", "concat", "subfile", "pipe", "data", "unix", "gopher", "ftp", "sftp", "async", "cache"] {
            assert!(!has(PROTOCOLS_OF_NETWORK, name), "{name}");
        }
        assert!(!OF_FILES.contains(' ') && !OF_NETWORK.contains(' '), "one word each");
    }
}
