// ER-Pose in an app: an NCNN export in, persons out. One header, C++17, ncnn alone; no NMS, as there is none to do, and no
// exceptions, as ncnn's builds for phones have none. docs/export-layout.md explains the arithmetic.
#pragma once

#include <net.h>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace erpose {
struct Keypoint {
    float x, y, visibility;  // pixels of the image; visibility in [0, 1]
    bool seen() const { return visibility >= 0.5f; }
};

struct Person {
    float score;
    int category;  // index into Model::classes
    float box[4];  // left, top, right, bottom in pixels of the image
    std::vector<Keypoint> keypoints;
};

// metadata.yaml of an export, which is block YAML: for each key at the left margin, the items below it in their order.
struct Metadata {
    std::map<std::string, std::vector<std::string>> items;

    explicit Metadata(const std::string& file) {
        std::string key, line;
        for (std::ifstream stream(file); std::getline(stream, line);) {
            line.erase(line.find_last_not_of(" \r") + 1);
            if (const size_t colon = line.find(':'); colon < line.size() && line[0] != ' ' && line[0] != '-') {
                key = line.substr(0, colon);
                line.erase(0, colon + 1);
            }
            while (!line.empty() && (line[0] == ' ' || line.compare(0, 2, "- ") == 0)) line.erase(0, 1);
            if (!line.empty()) items[key].push_back(plain(line));
        }
    }

    static std::string plain(const std::string& t) { return t[0] == '\'' || t[0] == '"' ? t.substr(1, t.size() - 2) : t; }
    bool has(const std::string& key, const std::string& text) { return std::count(items[key].begin(), items[key].end(), text); }
    std::vector<float> numbers(const std::string& key) {  // of the items that are numbers
        std::vector<float> out;
        char* end;
        for (const std::string& item : items[key])
            if (const float value = std::strtof(item.c_str(), &end); !*end) out.push_back(value);
        return out;
    }
    std::vector<std::pair<std::string, std::string>> pairs(const std::string& key) {  // of the items "name: text"
        std::vector<std::pair<std::string, std::string>> out;
        for (const std::string& item : items[key])
            if (const auto n = item.find(": "); n < item.size()) out.emplace_back(item.substr(0, n), plain(item.substr(n + 2)));
        return out;
    }
};

struct Model {
    std::vector<std::string> keypoint_names, classes;
    std::vector<std::pair<int, int>> limbs;  // pairs of keypoints
    std::string error;                       // why load or detect failed
    ncnn::Net net;                           // set its options, such as net.opt.num_threads, before load

    // Opens the folder of an export, once.
    bool load(const std::string& folder) {
        Metadata info(folder + "/metadata.yaml");
        if (!info.has("head", "ERPoseHead") || !info.has("layout", "maps"))
            return fail(folder + " is no NCNN export of an ER-Pose model with raw maps: export it with format=ncnn");
        const auto shape = info.numbers("kpt_shape"), size = info.numbers("imgsz"), unit = info.numbers("offset_cells");
        const auto range = info.numbers("input"), ends = info.numbers("skeleton");
        strides_ = info.numbers("strides"), margins_ = info.numbers("margins");
        by_oks_ = info.has("confidence", "expected_oks");
        for (const auto& [name, count] : info.pairs("maps")) {
            starts_[name] = channels_;
            channels_ += std::atoi(count.c_str());
        }
        for (const auto& [name, text] : info.pairs("input"))
            if (name == "padding") padding_ = std::strtof(text.c_str(), nullptr);
        bool known = info.has("input", "colour: RGB") && (by_oks_ || info.has("confidence", "score"));
        for (const char* part : {"offsets", "visibility", "log_spread"}) known = known && starts_.count(part);
        known = known && shape.size() == 2 && size.size() == 2 && unit.size() == 1 && range.size() == 2;
        if (!known || margins_.size() != 4 * (3 + size_t(shape[0])))
            return fail(folder + "/metadata.yaml describes another layout than this program knows");
        k_ = int(shape[0]), height_ = int(size[0]), width_ = int(size[1]);
        offset_cells_ = unit[0], low_ = range[0], high_ = range[1];
        for (const std::string& name : info.items["kpt_names"])  // "0:" and the names of the first class
            if (name.back() != ':' && int(keypoint_names.size()) < k_) keypoint_names.push_back(name);
        keypoint_names.resize(k_);
        for (const auto& pair : info.pairs("names")) classes.push_back(pair.second);
        for (size_t n = 0; n + 1 < ends.size(); n += 2) limbs.emplace_back(int(ends[n]), int(ends[n + 1]));
        if (net.load_param((folder + "/model.ncnn.param").c_str()) || net.load_model((folder + "/model.ncnn.bin").c_str()))
            return fail(folder + " holds no model.ncnn.param and model.ncnn.bin that ncnn can read");
        return true;
    }

    // Persons of an upright image whose score exceeds `conf`, best first; none with `error` set where the network is another.
    // Pixels have rows of `stride` bytes and one of ncnn's types, such as ncnn::Mat::PIXEL_RGB or PIXEL_BGRA2RGB.
    std::vector<Person> detect(const unsigned char* pixels, int type, int w, int h, int stride, float conf = 0.25f) {
        const double ratio = std::min(double(height_) / h, double(width_) / w);  // letterbox, as ultralytics rounds it
        const int new_w = std::max(std::nearbyint(w * ratio), 1.0), new_h = std::max(std::nearbyint(h * ratio), 1.0);
        const int left = std::nearbyint((width_ - new_w) / 2.0 - 0.1), right = width_ - new_w - left;
        const int top = std::nearbyint((height_ - new_h) / 2.0 - 0.1), bottom = height_ - new_h - top;
        ncnn::Mat input, resized = ncnn::Mat::from_pixels_resize(pixels, type, w, h, stride, new_w, new_h);
        ncnn::copy_make_border(resized, input, top, bottom, left, right, ncnn::BORDER_CONSTANT, padding_);
        const float scale = (high_ - low_) / 255, mean = -low_ / scale;
        const float means[] = {mean, mean, mean}, scales[] = {scale, scale, scale};
        input.substract_mean_normalize(means, scales);
        ncnn::Extractor extractor = net.create_extractor();
        extractor.input("in0", input);
        std::vector<Person> found;
        for (size_t level = 0; level < strides_.size(); level++) {
            ncnn::Mat scores, pose;
            extractor.extract(("out" + std::to_string(2 * level)).c_str(), scores);
            extractor.extract(("out" + std::to_string(2 * level + 1)).c_str(), pose);
            if (scores.c != int(classes.size()) || pose.c != channels_ || pose.w != scores.w || pose.h != scores.h)
                return fail("the network's outputs are not those of its metadata.yaml: export it again"), std::vector<Person>{};
            decode(scores, pose, strides_[level], conf, found);
        }
        std::stable_sort(found.begin(), found.end(), [](const Person& a, const Person& b) { return a.score > b.score; });
        const auto to_x = [&](float& x) { x = std::clamp((x - left) * w / new_w, 0.f, float(w)); };
        const auto to_y = [&](float& y) { y = std::clamp((y - top) * h / new_h, 0.f, float(h)); };
        for (Person& person : found) {
            to_x(person.box[0]), to_y(person.box[1]), to_x(person.box[2]), to_y(person.box[3]);
            for (Keypoint& point : person.keypoints) to_x(point.x), to_y(point.y);
        }
        return found;
    }

private:
    int k_ = 0, height_ = 0, width_ = 0, channels_ = 0;
    float offset_cells_ = 0, padding_ = 0, low_ = 0, high_ = 0;
    bool by_oks_ = false;
    std::vector<float> strides_, margins_;
    std::map<std::string, int> starts_;  // first channel of each part of a pose map

    bool fail(const std::string& why) { return error = why, false; }
    static float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
    // A map between the centres of its cells, and its border's value beyond.
    static float bilinear(const ncnn::Mat& map, float x, float y) {
        x = std::min(std::max(0.f, x), map.w - 1.f), y = std::min(std::max(0.f, y), map.h - 1.f);  // in this order no NaN passes
        const int x0 = int(x), y0 = int(y), x1 = std::min(x0 + 1, map.w - 1), y1 = std::min(y0 + 1, map.h - 1);
        const auto across = [&](const float* row) { return row[x0] + (row[x1] - row[x0]) * (x - x0); };
        return across(map.row(y0)) * (1 - y + y0) + across(map.row(y1)) * (y - y0);
    }

    // Appends the persons of one level, in pixels of the input.
    void decode(const ncnn::Mat& scores, const ncnn::Mat& pose, float stride, float conf, std::vector<Person>& found) const {
        const float bound = by_oks_ ? conf * conf : conf, unit = stride * offset_cells_;
        const int offsets = starts_.at("offsets"), visibility = starts_.at("visibility"), spread = starts_.at("log_spread");
        const auto refinement = starts_.find("refinement"), sides = starts_.find("box");
        for (int cell = 0; cell < pose.w * pose.h; cell++) {
            Person person{scores.channel(0)[cell], 0, {}, {}};
            for (int c = 1; c < scores.c; c++)
                if (const float logit = scores.channel(c)[cell]; logit > person.score) person.score = logit, person.category = c;
            person.score = sigmoid(person.score);
            if (!(person.score > bound)) continue;
            const auto at = [&](int channel) { return pose.channel(channel)[cell]; };
            const float x = (cell % pose.w + 0.5f) * stride, y = (cell / pose.w + 0.5f) * stride;
            float sure = 0, total = 0;
            for (int k = 0; k < k_; k++) {
                Keypoint point{x + at(offsets + 2 * k) * unit, y + at(offsets + 2 * k + 1) * unit, sigmoid(at(visibility + k))};
                float log_spread = at(spread + k);
                if (refinement != starts_.end()) {
                    const int first = refinement->second + 3 * k;
                    const float px = point.x / stride - 0.5f, py = point.y / stride - 0.5f;
                    point.x += bilinear(pose.channel(first), px, py) * unit;
                    point.y += bilinear(pose.channel(first + 1), px, py) * unit;
                    log_spread += bilinear(pose.channel(first + 2), px, py);
                }
                sure += (point.visibility + 0.001f) * sigmoid(-1 - 2 * log_spread);
                total += point.visibility + 0.001f;
                person.keypoints.push_back(point);
            }
            if (by_oks_) person.score = std::sqrt(person.score) * sure / total;
            if (!(person.score > conf)) continue;
            derive_box(person);
            for (int side = 0; side < 4 && sides != starts_.end(); side++)  // learned instead
                person.box[side] = (side % 2 ? y : x) + (side < 2 ? -unit : unit) * std::log1p(std::exp(at(sides->second + side)));
            found.push_back(person);
        }
    }

    // The extent of the keypoints that count, widened by margins that are linear in what is visible.
    void derive_box(Person& person) const {
        const auto& points = person.keypoints;
        const bool all = std::none_of(points.begin(), points.end(), [](const Keypoint& point) { return point.seen(); });
        float box[] = {INFINITY, INFINITY, -INFINITY, -INFINITY};
        for (const Keypoint& point : points) {
            if (!all && !point.seen()) continue;
            box[0] = std::min(box[0], point.x), box[1] = std::min(box[1], point.y);
            box[2] = std::max(box[2], point.x), box[3] = std::max(box[3], point.y);
        }
        const float w = box[2] - box[0], h = box[3] - box[1], diagonal = std::max(std::hypot(w, h), 1.f);
        for (int side = 0; side < 4; side++) {
            const float* margin = &margins_[side * (3 + k_)];
            float grow = margin[0] + (margin[1] * w + margin[2] * h) / diagonal;
            for (int k = 0; k < k_; k++) grow += all || points[k].seen() ? margin[3 + k] : 0;
            person.box[side] = box[side] + (side < 2 ? -1 : 1) * std::max(grow, 0.f) * diagonal;
        }
    }
};
}  // namespace erpose
