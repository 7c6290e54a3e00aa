// erpose MODEL_FOLDER IMAGE [--out DRAWN.png] [--conf 0.25]: one line per person, and a drawing where one is asked for.
#include <cstdio>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image.h>
#include <stb_image_write.h>

#include "erpose.hpp"

static void draw(unsigned char* rgb, int w, int h, const erpose::Model& model, const std::vector<erpose::Person>& persons) {
    const unsigned colours[] = {0x386fff, 0xffd231, 0xff9d97, 0x86db3d, 0x00d4bb, 0xc873ff};  // 0xBBGGRR
    const int thick = std::max(2, (w + h) / 600);
    for (size_t n = 0; n < persons.size(); n++) {
        const erpose::Person& person = persons[n];
        const unsigned colour = colours[n % 6];
        const auto& points = person.keypoints;
        for (const auto& [a, b] : model.limbs)
            if (points[a].visibility >= 0.5f && points[b].visibility >= 0.5f)
                ncnn::draw_line_c3(rgb, w, h, int(points[a].x), int(points[a].y), int(points[b].x), int(points[b].y), colour, thick);
        for (const erpose::Keypoint& k : points)
            if (k.visibility >= 0.5f) ncnn::draw_circle_c3(rgb, w, h, int(k.x), int(k.y), thick + 1, colour, -1);
        const int x = int(person.box[0]), y = int(person.box[1]);
        ncnn::draw_rectangle_c3(rgb, w, h, x, y, int(person.box[2]) - x, int(person.box[3]) - y, colour, std::max(1, thick / 2));
        ncnn::draw_text_c3(rgb, w, h, std::to_string(person.score).substr(0, 4).c_str(), x + 2, y + 2, 5 * thick + 6, colour);
    }
}

int main(int argc, char** argv) {
    std::string out;
    float conf = 0.25f;
    bool wrong = argc < 3 || argc % 2 == 0;
    for (int n = 3; n + 1 < argc; n += 2) {
        const std::string option = argv[n];
        if (option == "--out") out = argv[n + 1];
        else if (option == "--conf") conf = std::strtof(argv[n + 1], nullptr);
        else wrong = true;
    }
    if (wrong) return std::fprintf(stderr, "usage: erpose MODEL_FOLDER IMAGE [--out DRAWN.png] [--conf 0.25]\n"), 2;
    erpose::Model model;
    if (const std::string error = model.load(argv[1]); !error.empty()) return std::fprintf(stderr, "error: %s\n", error.c_str()), 1;
    int w, h, channels;
    unsigned char* rgb = stbi_load(argv[2], &w, &h, &channels, 3);
    if (!rgb) return std::fprintf(stderr, "error: %s is not an image that stb can read: %s\n", argv[2], stbi_failure_reason()), 1;
    const std::vector<erpose::Person> persons = model.detect(rgb, ncnn::Mat::PIXEL_RGB, w, h, 3 * w, conf);
    for (const erpose::Person& person : persons) {
        std::printf("%s %.4f  box %.2f %.2f %.2f %.2f", model.classes[person.category].c_str(), person.score, person.box[0],
                    person.box[1], person.box[2], person.box[3]);
        for (size_t k = 0; k < person.keypoints.size(); k++)
            std::printf("  %s %.2f,%.2f,%.3f", model.keypoint_names[k].c_str(), person.keypoints[k].x, person.keypoints[k].y,
                        person.keypoints[k].visibility);
        std::printf("\n");
    }
    if (!out.empty()) {
        draw(rgb, w, h, model, persons);
        if (!stbi_write_png(out.c_str(), w, h, 3, rgb, 3 * w)) return std::fprintf(stderr, "error: %s could not be written\n", out.c_str()), 1;
    }
    stbi_image_free(rgb);
    return 0;
}
