// erpose MODEL_FOLDER IMAGE [DRAWN.png]: one line per person, and a drawing where one is asked for.
#include "erpose.hpp"  // and <cmath>, which ncnn's copy of stb needs
#include <cstdio>
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image.h>
#include <stb_image_write.h>

static void draw(const erpose::Model& model, const erpose::Person& person, unsigned colour, unsigned char* rgb, int w, int h) {
    const int thick = std::max(2, (w + h) / 600), x = int(person.box[0]), y = int(person.box[1]);
    const auto& points = person.keypoints;
    for (const auto& [a, b] : model.limbs)
        if (points[a].seen() && points[b].seen())
            ncnn::draw_line_c3(rgb, w, h, int(points[a].x), int(points[a].y), int(points[b].x), int(points[b].y), colour, thick);
    for (const erpose::Keypoint& point : points)
        if (point.seen()) ncnn::draw_circle_c3(rgb, w, h, int(point.x), int(point.y), thick + 1, colour, -1);
    ncnn::draw_rectangle_c3(rgb, w, h, x, y, int(person.box[2]) - x, int(person.box[3]) - y, colour, thick / 2);
    ncnn::draw_text_c3(rgb, w, h, std::to_string(person.score).substr(0, 4).c_str(), x + 2, y + 2, 5 * thick + 6, colour);
}

int main(int argc, char** argv) {
    const auto fail = [](const std::string& why) { return std::fprintf(stderr, "error: %s\n", why.c_str()), 1; };
    if (argc != 3 && argc != 4) return fail("usage: erpose MODEL_FOLDER IMAGE [DRAWN.png]");
    erpose::Model model;
    if (!model.load(argv[1])) return fail(model.error);
    int w, h, channels, count = 0;
    unsigned char* rgb = stbi_load(argv[2], &w, &h, &channels, 3);
    if (!rgb) return fail(std::string(argv[2]) + " is not an image that stb can read: " + stbi_failure_reason());
    for (const erpose::Person& person : model.detect(rgb, ncnn::Mat::PIXEL_RGB, w, h, 3 * w)) {
        const float* box = person.box;
        const std::string* name = model.keypoint_names.data();
        std::printf("%s %.4f", model.classes[person.category].c_str(), person.score);
        std::printf("  box %.2f %.2f %.2f %.2f", box[0], box[1], box[2], box[3]);
        for (const erpose::Keypoint& point : person.keypoints)
            std::printf("  %s %.2f,%.2f,%.3f", (name++)->c_str(), point.x, point.y, point.visibility);
        std::printf("\n");
        const unsigned colours[] = {0x386fff, 0xffd231, 0xff9d97, 0x86db3d, 0x00d4bb, 0xc873ff};  // 0xBBGGRR
        if (argc == 4) draw(model, person, colours[count++ % 6], rgb, w, h);
    }
    if (!model.error.empty()) return fail(model.error);
    if (argc == 4 && !stbi_write_png(argv[3], w, h, 3, rgb, 3 * w)) return fail(std::string(argv[3]) + " could not be written");
    stbi_image_free(rgb);
}
