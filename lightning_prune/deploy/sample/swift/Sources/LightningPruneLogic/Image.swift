import Foundation

/// A gray picture, row by row, 0 (paper) to 1 (ink).
public struct GrayImage: Equatable, Sendable {
  public let height: Int
  public let width: Int
  public var values: [Float]

  public init(height: Int, width: Int) {
    self.height = height
    self.width = width
    values = [Float](repeating: 0, count: height * width)
  }

  public init(height: Int, width: Int, values: [Float]) throws {
    guard height > 0, width > 0, values.count == height * width else {
      throw ModelError("\(values.count) values make no image of \(height) x \(width)")
    }
    self.height = height
    self.width = width
    self.values = values
  }

  /// The same picture at another size, each value the mean over the area that it covers.
  public func resized(_ toHeight: Int, _ toWidth: Int) -> GrayImage {
    let rows = GrayImage.shares(height, toHeight)
    let columns = GrayImage.shares(width, toWidth)
    var result = GrayImage(height: toHeight, width: toWidth)
    for y in 0..<toHeight {
      for x in 0..<toWidth {
        var sum = 0.0
        for (row, high) in rows[y] {
          for (column, wide) in columns[x] { sum += high * wide * Double(values[row * width + column]) }
        }
        result.values[y * toWidth + x] = Float(sum)
      }
    }
    return result
  }

  /// For each of `to` cells: which of `from` cells lie under it, with the share of its length that each covers.
  private static func shares(_ from: Int, _ to: Int) -> [[(Int, Double)]] {
    var result: [[(Int, Double)]] = []
    for cell in 0..<to {
      let low: Double = Double(cell) * Double(from) / Double(to)
      let high: Double = Double(cell + 1) * Double(from) / Double(to)
      var covered: [(Int, Double)] = []
      for index in Int(low)..<from {
        let length: Double = min(high, Double(index + 1)) - max(low, Double(index))
        if length <= 0 { break }
        covered.append((index, length / (high - low)))
      }
      result.append(covered)
    }
    return result
  }
}

/// How a picture becomes the input of an image model, (images, channels, height, width) of float32 or uint8.
public struct ImageInput: Sendable {
  public let spec: TensorSpec
  /// The shape that is handed to the program: the smallest batch that it takes.
  public let shape: [Int]
  private let picture: PictureSpec

  public var height: Int { shape[2] }
  public var width: Int { shape[3] }

  public init(_ spec: TensorSpec, _ picture: PictureSpec = .plain) throws {
    var shape = spec.shape
    if !shape.isEmpty, let batch = spec.dynamic[0] { shape[0] = batch.lowerBound }
    guard shape.count == 4, shape[0] > 0, [1, 3].contains(shape[1]), shape[2] > 0, shape[3] > 0 else {
      throw ModelError("input \(spec): this screen needs images (1, 1 or 3 channels, height, width)")
    }
    guard ["float32", "uint8"].contains(spec.dtype) else {
      throw ModelError("input \(spec): this screen makes float32 or uint8")
    }
    guard picture.mean.isEmpty || picture.mean.count == shape[1] else {
      throw ModelError("input \(spec): the manifest has the mean of \(picture.mean.count) channels")
    }
    self.spec = spec
    self.shape = shape
    self.picture = picture
  }

  /// The picture in each channel of each image.
  public func values(_ image: GrayImage) -> [Float] {
    let small = image.resized(height, width).values.map { Double($0) * 255 }
    return values(Array(repeatElement(small, count: shape[1]).joined()))
  }

  /// The picture upright, resized, fitted and normalised as the manifest says, for each image.
  public func values(_ image: ColorImage) -> [Float] {
    var fill = 0.0
    if case .pad(let border) = picture.fit { fill = Double(border) }
    return values(image.channels(placement(image), count: shape[1], rows: height, columns: width, fill: fill))
  }

  /// Where the picture lies over the input.
  public func placement(_ image: ColorImage) -> Placement {
    Placement(picture.fit, height: image.height, width: image.width, rows: height, columns: width)
  }

  /// What the program takes of channels in 0…255: 0…1 or normalised in float32, whole numbers in uint8.
  private func values(_ channels: [Double]) -> [Float] {
    var image: [Float] = []
    image.reserveCapacity(channels.count)
    for (at, value) in channels.enumerated() {
      if spec.dtype == "uint8" {
        image.append(Float((value + 0.5).rounded(.down)))
      } else if picture.mean.isEmpty {
        image.append(Float(value / 255))
      } else {
        let channel = at / (height * width)
        let centred: Double = value / 255 - picture.mean[channel]
        image.append(Float(centred / picture.std[channel]))
      }
    }
    return Array(repeatElement(image, count: shape[0]).joined())
  }
}
