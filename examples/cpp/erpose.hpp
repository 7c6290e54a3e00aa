// ER-Pose in an app: an NCNN export in, persons out. One header, C++17, ncnn alone; no NMS, as there is none to do, and no
// exceptions, as ncnn's builds for phones have none. docs/export-layout.md explains the arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <net.h>

namespace erpose {

struct Keypoint {
    float x, y, visibility;  // pixels of the image; visibility in [0, 1]
};

struct Person {
    float score;
    int category;
    float box[4];  // left, top, right, bottom in pixels of the image
    std::vector<Keypoint> keypoints;
};

// The block YAML that an export is described with: of each key at the left margin, the items below it in their order.
class Metadata {
public:
    explicit Metadata(const std::string& file) {
        std::ifstream stream(file);
        std::vector<std::string>* items = nullptr;
        for (std::string line; std::getline(stream, line);) {
            line.erase(line.find_last_not_of(" \r") + 1);
            const size_t colon = line.find(':');
            if (!line.empty() && line[0] != ' ' && line[0] != '-' && colon != std::string::npos) {
                items = &values_[line.substr(0, colon)];
                line.erase(0, colon + 1);
            }
            size_t start = 0;
            while (start < line.size() && (line[start] == ' ' || line.compare(start, 2, "- ") == 0)) start++;
            line.erase(0, start);
            if (line.size() > 1 && (line[0] == '\'' || line[0] == '"')) line = line.substr(1, line.size() - 2);
            if (items && !line.empty()) items->push_back(line);
        }
    }

    std::vector<std::string> texts(const std::string& key) const {
        const auto found = values_.find(key);
        return found == values_.end() ? std::vector<std::string>{} : found->second;
    }

    std::string text(const std::string& key) const { return texts(key).empty() ? "" : texts(key)[0]; }

    std::vector<float> numbers(const std::string& key) const {
        std::vector<float> out;
        for (const std::string& item : texts(key)) {
            char* end;
            const float value = std::strtof(item.c_str(), &end);
            if (end != item.c_str() && !*end) out.push_back(value);  // "[]" and names are none
        }
        return out;
    }

    std::vector<std::pair<std::string, std::string>> pairs(const std::string& key) const {
        std::vector<std::pair<std::string, std::string>> out;
        for (const std::string& item : texts(key))
            if (const size_t colon = item.find(':'); colon != std::string::npos)
                out.emplace_back(item.substr(0, colon), item.substr(std::min(colon + 2, item.size())));
        return out;
    }

private:
    std::map<std::string, std::vector<std::string>> values_;
};

class Model {
public:
    std::vector<std::string> keypoint_names;
    std::vector<std::string> classes;
    std::vector<std::pair<int, int>> limbs;  // pairs of keypoints
    ncnn::Net net;                           // its options, such as opt.num_threads, are to be set before load

    // Opens the folder of an export; returns what is wrong with it, or an empty text.
    std::string load(const std::string& folder) {
        const Metadata info(folder + "/metadata.yaml");
        if (info.text("head") != "ERPoseHead" || info.text("layout") != "maps")
            return folder + " is no NCNN export of an ER-Pose model with layout=maps: export it again, format=ncnn";
        const std::vector<float> shape = info.numbers("kpt_shape"), size = info.numbers("imgsz"), unit = info.numbers("offset_cells");
        strides_ = info.numbers("strides");
        margins_ = info.numbers("margins");
        by_oks_ = info.text("confidence") == "expected_oks";
        bool known = shape.size() == 2 && size.size() == 2 && unit.size() == 1 && (by_oks_ || info.text("confidence") == "score");
        for (const auto& [name, count] : info.pairs("maps")) {
            starts_[name] = channels_;
            channels_ += std::atoi(count.c_str());
        }
        known = known && starts_.count("offsets") && starts_.count("visibility") && starts_.count("log_spread");
        for (const auto& [name, value] : info.pairs("input")) {
            if (name == "padding") padding_ = std::strtof(value.c_str(), nullptr);
            if (name == "colour") known = known && value == "RGB";
        }
        const std::vector<float> range = info.numbers("input");  // the two items that are plain numbers
        if (!known || range.size() != 2 || margins_.size() != 4 * (3 + size_t(shape[0])))
            return folder + "/metadata.yaml describes another layout than this program knows";
        k_ = int(shape[0]);
        height_ = int(size[0]);
        width_ = int(size[1]);
        offset_cells_ = unit[0];
        low_ = range[0];
        high_ = range[1];
        for (const std::string& name : info.texts("kpt_names"))  // of the first class; the last character tells "0:" from names
            if (name.back() != ':' && int(keypoint_names.size()) < k_) keypoint_names.push_back(name);
        for (const auto& [index, name] : info.pairs("names")) classes.push_back(name);
        const std::vector<float> ends = info.numbers("skeleton");
        for (size_t n = 0; n + 1 < ends.size(); n += 2) limbs.emplace_back(int(ends[n]), int(ends[n + 1]));
        if (net.load_param((folder + "/model.ncnn.param").c_str()) || net.load_model((folder + "/model.ncnn.bin").c_str()))
            return folder + " holds no model.ncnn.param and model.ncnn.bin that ncnn can read";
        return "";
    }

    // Persons of an upright image, best first. Pixels: of a type such as ncnn::Mat::PIXEL_RGB or PIXEL_BGRA2RGB, rows of
    // `stride` bytes. Persons of at most `conf` are left out.
    std::vector<Person> detect(const unsigned char* pixels, int type, int w, int h, int stride, float conf = 0.25f, size_t most = 300) {
        const double ratio = std::min(double(height_) / h, double(width_) / w);  // letterbox, as ultralytics rounds it
        const int new_w = std::max(int(std::nearbyint(w * ratio)), 1), new_h = std::max(int(std::nearbyint(h * ratio)), 1);
        const int left = int(std::nearbyint((width_ - new_w) / 2.0 - 0.1)), top = int(std::nearbyint((height_ - new_h) / 2.0 - 0.1));
        ncnn::Mat image = ncnn::Mat::from_pixels_resize(pixels, type, w, h, stride, new_w, new_h), input;
        ncnn::copy_make_border(image, input, top, height_ - new_h - top, left, width_ - new_w - left, ncnn::BORDER_CONSTANT, padding_);
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
            if (scores.empty() || pose.c != channels_ || pose.w != scores.w || pose.h != scores.h) return {};
            decode(scores, pose, strides_[level], conf, found);
        }
        std::stable_sort(found.begin(), found.end(), [](const Person& a, const Person& b) { return a.score > b.score; });
        if (found.size() > most) found.resize(most);
        const auto back = [](float value, int pad, float gain, int side) { return std::clamp((value - pad) / gain, 0.f, float(side)); };
        const float gain_x = float(new_w) / w, gain_y = float(new_h) / h;
        for (Person& person : found) {
            for (int side = 0; side < 4; side++)
                person.box[side] = side % 2 ? back(person.box[side], top, gain_y, h) : back(person.box[side], left, gain_x, w);
            for (Keypoint& k : person.keypoints) k.x = back(k.x, left, gain_x, w), k.y = back(k.y, top, gain_y, h);
        }
        return found;
    }

private:
    int k_ = 0, height_ = 0, width_ = 0, channels_ = 0;
    float offset_cells_ = 0, padding_ = 0, low_ = 0, high_ = 0;
    bool by_oks_ = false;
    std::vector<float> strides_, margins_;
    std::map<std::string, int> starts_;  // first channel of each part of a pose map

    static float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

    // A map between the centres of its cells, and its border's value beyond.
    static float bilinear(const ncnn::Mat& map, float x, float y) {
        x = std::clamp(x, 0.f, float(map.w - 1)), y = std::clamp(y, 0.f, float(map.h - 1));
        const int x0 = int(x), y0 = int(y), x1 = std::min(x0 + 1, map.w - 1), y1 = std::min(y0 + 1, map.h - 1);
        const float *upper = map.row(y0), *lower = map.row(y1), across = x - x0, down = y - y0;
        return (upper[x0] * (1 - across) + upper[x1] * across) * (1 - down) + (lower[x0] * (1 - across) + lower[x1] * across) * down;
    }

    // Appends the persons of one level, in pixels of the input.
    void decode(const ncnn::Mat& scores, const ncnn::Mat& pose, float stride, float conf, std::vector<Person>& found) const {
        const float bound = by_oks_ ? conf * conf : conf, unit = stride * offset_cells_;
        const int offsets = starts_.at("offsets"), visibility = starts_.at("visibility"), spread = starts_.at("log_spread");
        const auto refinement = starts_.find("refinement");
        for (int y = 0; y < pose.h; y++) {
            for (int x = 0; x < pose.w; x++) {
                const auto at = [&](int channel) { return pose.channel(channel).row(y)[x]; };
                Person person{scores.channel(0).row(y)[x], 0, {}, std::vector<Keypoint>(k_)};
                for (int c = 1; c < scores.c; c++)
                    if (const float logit = scores.channel(c).row(y)[x]; logit > person.score) person.score = logit, person.category = c;
                person.score = sigmoid(person.score);
                if (person.score <= bound) continue;
                float sure = 0, total = 0;
                for (int k = 0; k < k_; k++) {
                    Keypoint& point = person.keypoints[k];
                    point = {(x + 0.5f) * stride + at(offsets + 2 * k) * unit, (y + 0.5f) * stride + at(offsets + 2 * k + 1) * unit,
                             sigmoid(at(visibility + k))};
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
                }
                if (by_oks_) person.score = std::sqrt(person.score) * sure / total;
                if (person.score <= conf) continue;
                if (const auto box = starts_.find("box"); box == starts_.end()) {
                    derive_box(person);
                } else {
                    for (int side = 0; side < 4; side++) {
                        const float raw = at(box->second + side), softplus = std::max(raw, 0.f) + std::log1p(std::exp(-std::abs(raw)));
                        person.box[side] = ((side % 2 ? y : x) + 0.5f) * stride + (side < 2 ? -softplus : softplus) * unit;
                    }
                }
                found.push_back(std::move(person));
            }
        }
    }

    // The extent of the keypoints that count, widened by margins that are linear in what is visible.
    void derive_box(Person& person) const {
        const auto seen = [](const Keypoint& k) { return k.visibility >= 0.5f; };
        const bool all = std::none_of(person.keypoints.begin(), person.keypoints.end(), seen);
        float low_x = INFINITY, low_y = INFINITY, high_x = -INFINITY, high_y = -INFINITY, grow[4];
        for (const Keypoint& k : person.keypoints)
            if (all || seen(k))
                low_x = std::min(low_x, k.x), low_y = std::min(low_y, k.y), high_x = std::max(high_x, k.x), high_y = std::max(high_y, k.y);
        const float w = high_x - low_x, h = high_y - low_y, d = std::max(std::sqrt(w * w + h * h), 1.f);
        for (int side = 0; side < 4; side++) {
            const float* margin = &margins_[side * (3 + k_)];
            grow[side] = margin[0] + margin[1] * w / d + margin[2] * h / d;
            for (int k = 0; k < k_; k++)
                if (all || seen(person.keypoints[k])) grow[side] += margin[3 + k];
            grow[side] = std::max(grow[side], 0.f) * d;
        }
        const float box[] = {low_x - grow[0], low_y - grow[1], high_x + grow[2], high_y + grow[3]};
        std::copy(box, box + 4, person.box);
    }
};

}  // namespace erpose
