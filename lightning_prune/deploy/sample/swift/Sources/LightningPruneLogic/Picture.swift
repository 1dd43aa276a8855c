import Foundation

/// A colour picture as a camera gives it: pixels 0xAARRGGBB row by row, `rawHeight` rows of `rawWidth`.
public struct ColorImage: Equatable, Sendable {
  public let rawHeight: Int
  public let rawWidth: Int
  public let pixels: [UInt32]
  /// The degrees clockwise that turn it upright: 0, 90, 180 or 270.
  public let rotation: Int

  /// Of the upright picture.
  public var height: Int { rotation % 180 == 0 ? rawHeight : rawWidth }
  public var width: Int { rotation % 180 == 0 ? rawWidth : rawHeight }

  public init(height: Int, width: Int, pixels: [UInt32], rotation: Int = 0) throws {
    guard height > 0, width > 0, pixels.count == height * width else {
      throw ModelError("\(pixels.count) pixels make no picture of \(height) x \(width)")
    }
    guard [0, 90, 180, 270].contains(rotation) else {
      throw ModelError("a picture is not turned by \(rotation) degrees")
    }
    rawHeight = height
    rawWidth = width
    self.pixels = pixels
    self.rotation = rotation
  }

  /// The place in `pixels` of a pixel of the upright picture.
  func index(_ y: Int, _ x: Int) -> Int {
    switch rotation {
    case 0: return y * rawWidth + x
    case 90: return (rawHeight - 1 - x) * rawWidth + y
    case 180: return (rawHeight - 1 - y) * rawWidth + rawWidth - 1 - x
    default: return x * rawWidth + rawWidth - 1 - y
    }
  }
}

/// How a picture is brought to the height and width of an input.
public enum Fit: Equatable, Sendable {
  /// The middle of it, resized to this shorter side; without one it just covers the input.
  case crop(resize: Int?)
  /// All of it, whatever becomes of its proportions.
  case stretch
  /// All of it in its proportions, within a border of 0…255.
  case pad(fill: Int)
}

/// What the manifest says of pictures; `mean` and `std` by channel, of values in 0…1, or empty.
public struct PictureSpec: Equatable, Sendable {
  public let fit: Fit
  public let mean: [Double]
  public let std: [Double]

  public static let plain = PictureSpec(checked: .crop(resize: nil), [], [])

  public init(_ fit: Fit, mean: [Double] = [], std: [Double] = []) throws {
    guard mean.count == std.count, std.allSatisfy({ $0 > 0 }) else {
      throw ModelError("the manifest is incomplete: mean \(mean) and std \(std) of pictures")
    }
    self.init(checked: fit, mean, std)
  }

  private init(checked fit: Fit, _ mean: [Double], _ std: [Double]) {
    self.fit = fit
    self.mean = mean
    self.std = std
  }
}

/// Where a picture, resized to `height` x `width`, lies over an input: its corner, which crops where it is below 0.
public struct Placement: Equatable, Sendable {
  public let top: Int
  public let left: Int
  public let height: Int
  public let width: Int

  public init(top: Int, left: Int, height: Int, width: Int) {
    self.top = top
    self.left = left
    self.height = height
    self.width = width
  }

  /// The placement of a picture of `height` x `width` over an input of `rows` x `columns`.
  public init(_ fit: Fit, height: Int, width: Int, rows: Int, columns: Int) {
    switch fit {
    case .stretch:
      self.init(top: 0, left: 0, height: rows, width: columns)
    case .crop(let resize):
      // in whole numbers, as torchvision rounds: the shorter side as said, the other one rounded down
      let byHeight = resize == nil ? rows * width >= columns * height : height <= width
      let side = resize ?? (byHeight ? rows : columns)
      let tall = byHeight ? side : side * height / width
      let wide = byHeight ? side * width / height : side
      self.init(
        top: -Placement.half(tall - rows), left: -Placement.half(wide - columns), height: tall, width: wide)
    case .pad:
      let byHeight = rows * width <= columns * height
      let tall = byHeight ? rows : Placement.nearest(columns * height, width)
      let wide = byHeight ? Placement.nearest(rows * width, height) : columns
      self.init(top: (rows - tall) / 2, left: (columns - wide) / 2, height: tall, width: wide)
    }
  }

  /// Where a rectangle in pixels of the input lies on the picture.
  public func area(left: Double, top: Double, right: Double, bottom: Double) -> Area {
    let x = Double(self.left), y = Double(self.top), wide = Double(width), tall = Double(height)
    return Area(left: (left - x) / wide, top: (top - y) / tall, right: (right - x) / wide, bottom: (bottom - y) / tall)
  }

  /// Half of a size, halves to the even number.
  private static func half(_ size: Int) -> Int {
    Int((Double(size) / 2).rounded(.toNearestOrEven))
  }

  private static func nearest(_ size: Int, _ by: Int) -> Int {
    max(1, Int((Double(size) / Double(by)).rounded(.toNearestOrEven)))
  }
}

/// A picture at another size as torchvision resizes it: bilinear, and with antialiasing where it becomes smaller.
struct Resampling {
  /// Of each cell from `start` on: the first pixel below it, and the weights of that one and the following ones.
  private(set) var first: [Int] = []
  private(set) var weights: [[Double]] = []

  init(_ from: Int, _ to: Int, start: Int, count: Int) {
    let scale: Double = Double(from) / Double(to)
    let reach: Double = max(scale, 1)
    for cell in 0..<count {
      let center: Double = (Double(start + cell) + 0.5) * scale
      let low = max(0, Int(center - reach + 0.5))
      let high = min(from, Int(center + reach + 0.5))
      var heights: [Double] = []
      for pixel in low..<high {
        let gap: Double = (Double(pixel) + 0.5 - center) / reach
        heights.append(max(0, 1 - abs(gap)))
      }
      let sum: Double = heights.reduce(0, +)
      first.append(low)
      weights.append(heights.map { $0 / sum })
    }
  }
}

extension ColorImage {
  /// The channels over an input of `rows` x `columns`, 0…255, channel by channel; the border is `fill`.
  func channels(_ place: Placement, count: Int, rows: Int, columns: Int, fill: Double) -> [Double] {
    let top = max(0, place.top), left = max(0, place.left)
    let tall = min(rows, place.top + place.height) - top
    let wide = min(columns, place.left + place.width) - left
    let vertical = Resampling(height, place.height, start: top - place.top, count: tall)
    let horizontal = Resampling(width, place.width, start: left - place.left, count: wide)
    var result = [Double](repeating: fill, count: count * rows * columns)
    // each row of the picture is narrowed once, however many rows of the input it takes part in
    var narrowed = [[Double]](repeating: [], count: height)
    for y in 0..<tall {
      var sums = [Double](repeating: 0, count: count * wide)
      for (i, weight) in vertical.weights[y].enumerated() {
        let row = vertical.first[y] + i
        if narrowed[row].isEmpty { narrowed[row] = narrowedRow(row, horizontal, count) }
        for at in sums.indices { sums[at] += weight * narrowed[row][at] }
      }
      for c in 0..<count {
        let start = (c * rows + top + y) * columns + left
        for x in 0..<wide { result[start + x] = sums[c * wide + x] }
      }
    }
    return result
  }

  private func narrowedRow(_ row: Int, _ horizontal: Resampling, _ count: Int) -> [Double] {
    let wide = horizontal.first.count
    var values = [Double](repeating: 0, count: count * wide)
    for x in 0..<wide {
      var red = 0.0, green = 0.0, blue = 0.0
      for (i, weight) in horizontal.weights[x].enumerated() {
        let pixel = pixels[index(row, horizontal.first[x] + i)]
        red += weight * Double(pixel >> 16 & 0xff)
        green += weight * Double(pixel >> 8 & 0xff)
        blue += weight * Double(pixel & 0xff)
      }
      if count == 1 {
        values[x] = 0.299 * red + 0.587 * green + 0.114 * blue
      } else {
        values[x] = red
        values[wide + x] = green
        values[2 * wide + x] = blue
      }
    }
    return values
  }
}
